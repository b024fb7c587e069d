"""Run records: the JSON that everything after training reads, ours or of another code base."""

import difflib
import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inat_ft.config import format_validation_error
from inat_ft.errors import InatFtError, RecordError, StorageError, UsageError

UnitInterval = Annotated[float, Field(ge=0, le=1)]
SCHEMA_VERSION = 1


_FileName = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class _RecordModel(BaseModel):
    """Part of a record: frozen; unknown keys are kept, since other code bases write what they like."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, strict=False)


class Advice(StrEnum):
    """Why more training may help a run."""

    FEW_STEPS = "few_steps"
    """It took few optimizer steps."""
    LOSS_STILL_FALLING = "loss_still_falling"
    """The training loss was still falling in the last epoch."""


class Epoch(_RecordModel):
    """What one pass over the training images came to. The history may come from other tools, so only `epoch` is a must."""

    epoch: Annotated[int, Field(ge=1)]
    """Counted from 1."""
    train_loss: float | None = None
    """Mean over the training images, in nats, while learning."""
    train_accuracy: UnitInterval | None = None
    """Share of training images that were right while learning."""
    val_loss: float | None = None
    """Mean over the validation images, in nats; null where it is not finite."""
    val_accuracy: UnitInterval | None = None
    """Share of validation images that are right after the epoch."""
    lr: float | None = None
    """Learning rate of the last step."""
    seconds: float | None = None
    """Wall time, validation included."""


class MetricValue(_RecordModel):
    """A number with its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str | None = None
    """How the interval was found: wilson, exact, Gaffke, bootstrap."""


class ClassMetrics(_RecordModel):
    """How well one class is recognised."""

    name: str
    num_images: int
    precision: MetricValue
    recall: MetricValue
    f1: MetricValue


class Evaluation(_RecordModel):
    """What `inat-ft eval` found on one subset."""

    subset: Literal["val", "test"]
    num_images: Annotated[int, Field(ge=1)]
    fingerprint: str
    """Of the images and labels of the subset: equal means the same images with the same labels."""
    metrics: dict[str, MetricValue]
    """By name: accuracy, balanced_accuracy, top3_accuracy, macro_f1, log_loss, brier, ece ..."""
    per_class: list[ClassMetrics] = []
    confusion: list[list[int]] = []
    """Rows: true class; columns: predicted class; in the order of `classes`."""
    predictions: str | None = None
    """CSV of predictions, relative to the record."""
    look: int | None = None
    """Which look at the test set of this manifest it was, counted from 1."""
    tta: str = "none"
    """Averaged with: none, or flip (the mirrored image)."""
    image_size: int | None = None
    """Height and width in pixels of the images that the network saw."""


class SplitInfo(_RecordModel):
    """The data that a run saw."""

    manifest: _FileName
    """Path of the manifest, relative to the record."""
    fingerprint: str
    """Of the manifest."""
    counts: dict[str, int]
    """Images by subset: train, val, test."""
    subset_fingerprints: dict[str, str] = {}
    """Of the images and labels of each subset."""


class Parameters(_RecordModel):
    """How large the network is."""

    total: Annotated[int, Field(ge=0)]
    trained: Annotated[int, Field(ge=0)]
    """Those that learned in at least one epoch."""


class RunRecord(_RecordModel):
    """One trained classifier: what it was, how it came about and what it reached.

    The least that `inat-ft compare` takes from another code base is `name` and `test_accuracy`; each further key that is
    there is used. Unknown keys are kept and ignored.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
    """What comparisons call it: without control characters."""
    created: str | None = None
    """UTC, ISO 8601."""
    test_accuracy: UnitInterval | None = None
    """Share of the test images that are right; null until the run has been evaluated on the test set."""
    num_test: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Images that `test_accuracy` was measured on."""
    val_accuracy: UnitInterval | None = None
    """Of the best epoch: the best by the monitored metric (`stop.monitor`), then by the validation loss."""
    classes: list[str] = []
    config: dict[str, Any] = {}
    """The resolved configuration; `inat-ft train --config` takes it back."""
    seed: int | None = None
    split: SplitInfo | None = None
    history: list[Epoch] = []
    best_epoch: Annotated[int, Field(ge=1)] | None = None
    stopped_early: bool = False
    optimizer_steps: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps in all epochs together."""
    advice: list[Advice] = []
    """Why more training may help."""
    parameters: Parameters | None = None
    seconds: dict[str, float] = {}
    """Wall time by part: data, prefix, training, validation, total."""
    images_per_s: float | None = None
    """Training images a second, validation and caching included."""
    peak_memory_mib: float | None = None
    preprocess: dict[str, Any] = {}
    """image_size, eval_image_size, resize, interpolation, mean, std: exactly what evaluation and prediction use."""
    compute: dict[str, Any] = {}
    """What was chosen: device, precision, cache, and why."""
    environment: dict[str, Any] = {}
    """Versions, platform, device name and git commit."""
    weights_sha256: str | None = None
    """Of the pretrained weights that the run started from."""
    val: Evaluation | None = None
    test: Evaluation | None = None
    predictions: dict[str, _FileName] = {}
    """CSV of predictions by subset (path,true,predicted[,p_<class>...]), relative to the record."""
    notes: list[str] = []


def read_record(path: Path) -> tuple[RunRecord, Path]:
    """The record at `path` (a run directory or a JSON file) and the file it came from. Raises RecordError or UsageError."""
    file = path / "record.json" if path.is_dir() else path
    try:
        if file.exists() and not file.is_file():
            raise RecordError(f"{file} is no regular file")
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text)
    except FileNotFoundError:
        raise _no_record(path) from None
    except (OSError, ValueError, RecursionError) as error:  # of numbers too long and lists too deep, too
        raise RecordError(f"cannot read {file} as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RecordError(f"{file} holds a {type(raw).__name__}, not a record")
    version = raw.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise RecordError(f"{file}: schema_version {version!r} is unknown; this version reads {SCHEMA_VERSION}")
    try:
        record = RunRecord.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise RecordError(f"{file}: {format_validation_error(error, RunRecord).message}") from None
    for key in record.model_extra or {}:
        near = difflib.get_close_matches(key, ("test_accuracy", "num_test", "predictions"), 1, 0.8)
        if key.lower() in ("accuracy", "acc", "test_acc") and not record.predictions:
            near = ["test_accuracy"]
        if near and near[0] not in record.model_fields_set:
            unit = " (0 to 1)" if near == ["test_accuracy"] else ""
            raise RecordError(f"{file}: unknown key '{key}': did you mean '{near[0]}'{unit}?")
    return record, file


def _no_record(path: Path) -> InatFtError:
    if not path.is_dir():
        return UsageError(f"no such record: {path}")
    if (path / "config.yaml").exists():
        return UsageError(f"the training of {path} has not ended", f"go on with it: inat-ft train --resume {path}")
    return UsageError(f"{path} holds no record.json: is it a run directory?")


def write_record(record: RunRecord, file: Path) -> None:
    """Write the record as JSON, atomically. Raises RecordError, and writes nothing, when it could not be read back."""
    text = record.model_dump_json(indent=2)
    try:
        RunRecord.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise RecordError(f"cannot write {file}: {format_validation_error(error, RunRecord).message}") from None
    write_text(file, text + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically: a reader finds the old content or the new, never half of it."""
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A temporary path beside `file` that takes its place when the block ends well, and is removed when it does not.

    An existing file keeps its mode, and a symbolic link keeps leading to its target. Raises InatFtError when the disk is
    full or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        file = Path(os.path.realpath(file)) if file.is_symlink() else file
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as written:  # Windows syncs only what may be written
            os.fsync(written.fileno())
        temporary.chmod(stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o666 & ~_umask())
        temporary.replace(file)
    except Exception as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        advice = (
            "free some space, or name another folder" if is_disk_full(cause) else "name a folder that can be written"
        )
        raise StorageError(f"cannot write {file}: {cause.strerror or cause}", advice) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _disk_error(error: Exception) -> OSError | None:
    """What the system said to whoever wrote a file: libraries have their own exceptions, and Rust names only the code."""
    if isinstance(error, OSError):
        return error
    if isinstance(error.__context__, OSError):
        return error.__context__
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def is_disk_full(error: OSError) -> bool:
    """Whether it is space that is missing: on the disk, in a quota, or up to a limit on the size of files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
