"""The checkpoint of a training, saved after every epoch. It holds tensors and plain values, no code."""

from pathlib import Path

import torch

from inat_ft.config import OptimConfig
from inat_ft.engine.fit import TrainState, restore
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.errors import InatFtError
from inat_ft.records import Epoch, atomic_write

_VERSION = 2
_NEW_RUN = "start a new run with another --name"


class CheckpointError(InatFtError):
    """A checkpoint cannot be resumed."""


def save_checkpoint(file: Path, state: TrainState, plan: TrainingPlan, identity: str) -> None:
    """Write a checkpoint atomically. identity: hash of everything that decides the numbers of the run."""
    if state.optimizer is None:
        raise ValueError("no epoch has been trained")
    tensors = plan.net.state_dict()
    stopping = state.early_stopping
    content = {
        "version": _VERSION,
        "identity": identity,
        "epoch": state.epoch,
        "steps": state.steps,
        "weights": state.raw_weights or {name: tensors[name] for name in plan.trainable_state_names()},
        "average": state.average_state,
        "optimizer": state.optimizer.state_dict(),
        "history": [epoch.model_dump() for epoch in state.history],
        "stop": {"best": stopping.best, "waited": stopping.num_bad_epochs},
        "best": state.best_weights,
        "best_epoch": state.best_epoch,
        "best_logits": state.best_logits,
        "stopped": state.stop_reason,
    }
    with atomic_write(file) as temporary, temporary.open("wb") as out:  # an open file, so that a full disk is reported
        torch.save(content, out)


def load_checkpoint(file: Path, state: TrainState, plan: TrainingPlan, config: OptimConfig, identity: str) -> None:
    """Load a checkpoint into the state and the network, if the file exists.

    Raises CheckpointError when the file is damaged or belongs to a run with other settings, images or weights.
    """
    if not file.exists():
        return
    try:
        device = next(plan.net.parameters()).device
        content = torch.load(file, map_location=device, weights_only=True)
        version, saved_identity = content["version"], content["identity"]
    except Exception as error:  # a damaged file may raise anything
        raise CheckpointError(
            f"cannot read the checkpoint {file}: {str(error) or 'the file is not complete'}", _NEW_RUN
        ) from error
    if version != _VERSION or saved_identity != identity:
        raise CheckpointError(f"{file} was saved with other settings, images or weights than the run has now", _NEW_RUN)
    restore(plan.net, content["weights"])
    average = content["average"].items()
    state.average_state = {name: tensor if tensor.ndim else tensor.cpu() for name, tensor in average}
    state.epoch, state.steps = content["epoch"], content["steps"]
    trainable = plan.epochs[state.epoch - 1]
    plan.net.set_trainable(trainable.scales)
    state.optimizer = make_optimizer(trainable, config)
    state.optimizer.load_state_dict(content["optimizer"])
    state.history = [Epoch.model_validate(epoch) for epoch in content["history"]]
    stopping = state.early_stopping
    stopping.best, stopping.num_bad_epochs = tuple(content["stop"]["best"]), content["stop"]["waited"]
    state.best_weights, state.best_epoch = content["best"], content["best_epoch"]
    state.best_logits, state.stop_reason = content["best_logits"].cpu(), content["stopped"]
