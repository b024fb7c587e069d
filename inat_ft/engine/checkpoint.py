"""The checkpoint of a training, saved after every epoch. It holds tensors and plain values, no code.

The checkpoint before it is kept, and is used when the newest one is damaged.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Self
from zipfile import ZipFile

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor

from inat_ft.config import OptimConfig
from inat_ft.engine.fit import TrainState, restore, tensors_of
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.errors import InatFtError
from inat_ft.progress import Log, ignore_log
from inat_ft.records import Epoch, atomic_write
from inat_ft.text import few

_VERSION = 2
_NEW_RUN = "start a new run with another --name"


class _Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True)


class _Stop(_Model):
    best: tuple[float, float]
    waited: Annotated[int, Field(ge=0)]


def _parse_history(history: Any) -> Any:
    """Parse JSON lines; version 0.1.0 stored a list."""
    return [Epoch.model_validate_json(line) for line in history.splitlines()] if isinstance(history, str) else history


class _Content(_Model):
    """The content of a checkpoint, besides its version and its identity."""

    epoch: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0)]
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    scaler: dict[str, Any] = {}
    optimizer: dict[str, Any]
    history: Annotated[list[Epoch], BeforeValidator(_parse_history)]
    stop: _Stop
    best: dict[str, Tensor]
    best_epoch: Annotated[int, Field(ge=1)]
    best_logits: Tensor
    stopped: str


class CheckpointError(InatFtError):
    """A checkpoint cannot be resumed."""


class CheckpointWriter:
    """Writes checkpoints atomically, in the background and one at a time; leaving the context waits for the last one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._thread.shutdown()
        if error is None:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._last is not None:
            self._last.result()

    def save(self, file: Path, state: TrainState, plan: TrainingPlan, identity: str) -> None:
        """Copy the state and start to write it. identity: hash of everything that decides the numbers of the run.

        Raises InatFtError when the previous checkpoint could not be written.
        """
        if state.optimizer is None:
            raise ValueError("no epoch has been trained")
        self._raise_failure()
        stopping = state.early_stopping
        content = {
            "version": _VERSION,
            "identity": identity,
            "epoch": state.epoch,
            "steps": state.steps,
            "weights": state.raw_weights or tensors_of(plan.net, plan.trainable_state_names()),
            "average": state.average_state,
            "scaler": state.scaler,
            "optimizer": state.optimizer.state_dict(),
            "history": state.history_lines(),
            "stop": {"best": stopping.best, "waited": stopping.num_bad_epochs},
            "best": state.best_weights,
            "best_epoch": state.best_epoch,
            "best_logits": state.best_logits,
            "stopped": state.stop_reason,
        }
        copied = _copy_to_cpu(content)
        device = next(plan.net.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # once, instead of once for each tensor
        self._last = self._thread.submit(_write, file, copied)

    def then(self, write: Callable[[], None]) -> None:
        """Call a function in the background if the last checkpoint could be written."""
        last = self._last
        assert last is not None, "no checkpoint has been saved"
        self._last = self._thread.submit(_after, last, write)


def _after(last: Future[None], write: Callable[[], None]) -> None:
    last.result()
    write()


def _copy_to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", non_blocking=value.device.type == "cuda", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(each) for key, each in value.items()}
    return type(value)(map(_copy_to_cpu, value)) if isinstance(value, (list, tuple)) else value


def _write(file: Path, content: dict[str, Any]) -> None:
    with atomic_write(file) as temporary:
        with temporary.open("wb") as out:  # an open file, so that a full disk is reported
            torch.save(content, out)
        if file.exists():
            file.replace(previous_checkpoint(file))


def previous_checkpoint(file: Path) -> Path:
    """Return the path of the checkpoint before the newest one."""
    return file.with_suffix(".previous.pt")


def load_checkpoint(
    file: Path,
    state: TrainState,
    plan: TrainingPlan,
    config: OptimConfig,
    identity: str,
    logits_shape: tuple[int, int],
    log: Log = ignore_log,
) -> None:
    """Load a checkpoint, if there is one, into the state and the network; the one before it if the newest is damaged.

    logits_shape: of the validation logits.

    Raises CheckpointError when both are damaged, or belong to a run with other settings, images or weights.
    """
    content: Any = None
    damage: list[CheckpointError] = []
    for found in filter(Path.exists, (file, previous_checkpoint(file))):
        try:
            content = _read(found, next(plan.net.parameters()).device)
            break
        except CheckpointError as error:
            damage.append(error)
    if content is None and damage:
        raise damage[0]
    if content is None:
        return
    if damage:
        log(f"warning: {damage[0].message}; training resumes from the checkpoint before it, epoch {content['epoch']}")
    if content["version"] != _VERSION or content["identity"] != identity:
        raise CheckpointError(f"{file} was saved with other settings, images or weights than the run has now", _NEW_RUN)
    try:
        checked = _Content.model_validate(content)
        if tuple(checked.best_logits.shape) != logits_shape:
            raise ValueError(f"logits of the shape {tuple(checked.best_logits.shape)} instead of {logits_shape}")
        _restore(checked, state, plan, config)
    except Exception as error:  # the tensors can have other names or shapes
        invalid = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, invalid["loc"])) if invalid else type(error).__name__
        reason = f"{where}: {invalid['msg'] if invalid else error}"
        raise CheckpointError(f"the checkpoint {file} is damaged: {reason}", _NEW_RUN) from error


def _restore(content: _Content, state: TrainState, plan: TrainingPlan, config: OptimConfig) -> None:
    if not content.best_epoch <= content.epoch == len(content.history) <= len(plan.epochs):
        raise ValueError(f"epoch {content.epoch} with {len(content.history)} results, the best of {content.best_epoch}")
    names = set(plan.trainable_state_names())
    if odd := names.symmetric_difference(content.best) | names.symmetric_difference(content.weights):
        raise ValueError(f"missing or unknown tensors: {few(sorted(odd))}")
    restore(plan.net, content.weights)
    state.average_state, state.scaler = content.average, content.scaler
    state.epoch, state.steps = content.epoch, content.steps
    trainable = plan.epochs[state.epoch - 1]
    plan.net.set_trainable(trainable.scales)
    state.optimizer = make_optimizer(trainable, config)
    state.optimizer.load_state_dict(content.optimizer)
    state.history = content.history
    stopping = state.early_stopping
    stopping.best, stopping.num_bad_epochs = content.stop.best, content.stop.waited
    state.best_weights, state.best_epoch = content.best, content.best_epoch
    state.best_logits, state.stop_reason = content.best_logits.cpu(), content.stopped


def _read(file: Path, device: torch.device) -> Any:
    """Return the content of a checkpoint. Raises CheckpointError when it is damaged: torch does not check the checksums."""
    try:
        with ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} is wrong")
        content = torch.load(file, map_location=device, weights_only=True)
        if not content.keys() >= {"version", "identity", "epoch"}:
            raise ValueError("it is not a checkpoint of inat-ft")
        return content
    except Exception as error:  # a damaged file may raise anything
        reason = str(error) or "the file is not complete"
        raise CheckpointError(f"cannot read the checkpoint {file}: {reason}", _NEW_RUN) from error
