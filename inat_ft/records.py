"""Run records: JSON files that evaluation and comparison read, written by inat-ft or by other programs."""

import difflib
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

from inat_ft.errors import InatFtError, RecordError, StorageError, UsageError, is_disk_full
from inat_ft.validation import format_validation_error

SCHEMA_VERSION = 1
UnitInterval = Annotated[float, Field(ge=0, le=1)]
_FileName = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class _RecordModel(BaseModel):
    """Part of a record. It is frozen, and it keeps unknown keys of other programs."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, strict=False)


class Advice(StrEnum):
    """Why more training may help a run."""

    FEW_STEPS = "few_steps"
    """It took few optimizer steps."""
    LOSS_STILL_FALLING = "loss_still_falling"
    """The training loss was still falling in the last epoch."""


class Epoch(_RecordModel):
    """The results of an epoch. Only `epoch` is required, since histories also come from other programs."""

    epoch: Annotated[int, Field(ge=1)]
    """Counted from 1."""
    train_loss: float | None = None
    """Mean loss over the training images, in nats, computed during training."""
    train_accuracy: UnitInterval | None = None
    """Accuracy on the training images, computed during training."""
    val_loss: float | None = None
    """Mean loss over the validation images, in nats; null if it is not finite."""
    val_accuracy: UnitInterval | None = None
    """Accuracy on the validation images after the epoch."""
    lr: float | None = None
    """Learning rate of the last step."""
    seconds: float | None = None
    """Wall time, including validation."""


class MetricValue(_RecordModel):
    """A value with its 95 % confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str | None = None
    """Method of the interval, such as wilson, exact or bootstrap."""


class ClassMetrics(_RecordModel):
    """The metrics of a class."""

    name: str
    num_images: int
    precision: MetricValue
    recall: MetricValue
    f1: MetricValue


class Evaluation(_RecordModel):
    """The results of `inat-ft eval` on a subset."""

    subset: Literal["val", "test"]
    num_images: Annotated[int, Field(ge=1)]
    fingerprint: str
    """Fingerprint of the images and labels of the subset."""
    metrics: dict[str, MetricValue]
    """By name: accuracy, balanced_accuracy, top3_accuracy, macro_f1, log_loss, brier, ece ..."""
    per_class: list[ClassMetrics] = []
    confusion: list[list[int]] = []
    """Rows: true class; columns: predicted class; in the order of `classes`."""
    predictions: str | None = None
    """CSV of predictions, relative to the record."""
    look: int | None = None
    """Number of this evaluation among all evaluations of the test set of the manifest, counted from 1."""
    tta: str = "none"
    """Test-time augmentation: none, or flip (mean with the mirrored image)."""
    image_size: int | None = None
    """Height and width of the network's input, in pixels."""


class SplitInfo(_RecordModel):
    """The data of a run."""

    manifest: _FileName
    """Path of the manifest, relative to the record."""
    fingerprint: str
    """Fingerprint of the manifest."""
    counts: dict[str, int]
    """Number of images by subset: train, val, test."""
    subset_fingerprints: dict[str, str] = {}
    """Fingerprints of the images and labels of each subset."""


class Parameters(_RecordModel):
    """Numbers of parameters."""

    total: Annotated[int, Field(ge=0)]
    trained: Annotated[int, Field(ge=0)]
    """Those that were trainable in at least one epoch."""


class RunRecord(_RecordModel):
    """The configuration and the results of a trained classifier.

    A record from another program requires only `name` and `test_accuracy` for `inat-ft compare`; all other known keys are
    used if present. Unknown keys are kept and ignored.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
    """Name in comparisons, without control characters."""
    created: str | None = None
    """UTC, ISO 8601."""
    test_accuracy: UnitInterval | None = None
    """Accuracy on the test images; null until the run is evaluated on the test set."""
    num_test: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Number of images that `test_accuracy` was measured on."""
    val_accuracy: UnitInterval | None = None
    """Accuracy on the validation images in the best epoch, which is the best by `stop.monitor`, then by validation loss."""
    classes: list[str] = []
    config: dict[str, Any] = {}
    """The resolved configuration, as `inat-ft train --config` reads it."""
    seed: int | None = None
    split: SplitInfo | None = None
    history: list[Epoch] = []
    best_epoch: Annotated[int, Field(ge=1)] | None = None
    stopped_early: bool = False
    optimizer_steps: Annotated[int, Field(ge=0)] | None = None
    """Total number of optimizer steps."""
    advice: list[Advice] = []
    """Why more training may help."""
    parameters: Parameters | None = None
    seconds: dict[str, float] = {}
    """Wall time by part: data, prefix, training, validation, total."""
    images_per_s: float | None = None
    """Training images per second, including validation and caching."""
    peak_memory_mib: float | None = None
    preprocess: dict[str, Any] = {}
    """Input of the network: image_size, eval_image_size, resize, interpolation, mean, std."""
    compute: dict[str, Any] = {}
    """Device, precision and caches, and why they were chosen."""
    environment: dict[str, Any] = {}
    """Versions, platform, device name and git commit."""
    weights_sha256: str | None = None
    """SHA-256 of the pretrained weights that the run started from."""
    val: Evaluation | None = None
    test: Evaluation | None = None
    predictions: dict[str, _FileName] = {}
    """CSV file of predictions by subset (path,true,predicted[,p_<class>...]), relative to the record."""
    notes: list[str] = []


def read_record(path: Path) -> tuple[RunRecord, Path]:
    """Read the record at a path, which is a run directory or a JSON file. Return it and its file.

    Raises RecordError when it is invalid, and UsageError when it does not exist.
    """
    file = path / "record.json" if path.is_dir() else path
    try:
        if file.exists() and not file.is_file():
            raise RecordError(f"{file} is not a regular file")
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text)
    except FileNotFoundError:
        raise _no_record(path) from None
    except (OSError, ValueError, RecursionError) as error:  # also of long numbers and deep lists
        raise RecordError(f"cannot read {file} as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RecordError(f"{file} contains a {type(raw).__name__}, not a record")
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
        return UsageError(
            f"run or record not found: {path}", "pass a run directory, such as runs/NAME, or a record.json"
        )
    if (path / "config.yaml").exists():
        return UsageError(f"the training of {path} is not finished", f"resume it: inat-ft train --resume {path}")
    return UsageError(f"{path} is not a run directory: it has no record.json")


def write_record(record: RunRecord, file: Path) -> None:
    """Write a record as JSON, atomically. Raises RecordError, and writes nothing, when it is invalid."""
    text = record.model_dump_json(indent=2)
    try:
        RunRecord.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise RecordError(f"cannot write {file}: {format_validation_error(error, RunRecord).message}") from None
    write_text(file, text + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically: a reader finds either the old content or the new."""
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces the file when the block succeeds and is removed when it fails.

    The mode of an existing file is kept, and a symbolic link is followed. Raises StorageError when the disk is full or the
    folder is not writable.
    """
    temporary: Path | None = None
    try:
        file = Path(os.path.realpath(file)) if file.is_symlink() else file
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as written:  # Windows syncs only writable files
            os.fsync(written.fileno())
        temporary.chmod(stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o666 & ~_umask())
        temporary.replace(file)
    except Exception as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        advice = "free some space, or choose another folder" if is_disk_full(cause) else "choose a writable folder"
        raise StorageError(f"cannot write {file}: {cause.strerror or cause}", advice) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _disk_error(error: Exception) -> OSError | None:
    """Return the system error behind an exception: libraries wrap it, and those in Rust only name its code."""
    if isinstance(error, OSError):
        return error
    if isinstance(error.__context__, OSError):
        return error.__context__
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
