"""Run records: JSON files that evaluation and comparison read, written by inat-ft or by other programs."""

import difflib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from inat_ft.errors import RecordError, StorageError, UsageError, disk_error, is_disk_full
from inat_ft.paths import check_writable, is_cross_validation
from inat_ft.validation import format_validation_error

UnitInterval = Annotated[float, Field(ge=0, le=1)]
_FileName = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class _RecordModel(BaseModel):
    """Part of a record. It is frozen, and it keeps unknown keys of other programs."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class Advice(StrEnum):
    """Why more training may help a run."""

    FEW_STEPS = "few_steps"
    """It took few optimizer steps."""
    LOSS_STILL_FALLING = "loss_still_falling"
    """The training loss was still falling in the last epoch."""


class Epoch(_RecordModel):
    """The results of an epoch. Only `epoch` is required, since histories also come from other programs."""

    epoch: Annotated[int, Field(ge=1, le=10**9)]
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
    """A value with its 95% confidence interval."""

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
    groups: dict[str, Any] | None = None
    """Results by group, for a split with `--group-by`: `num_groups`; `num_seen` groups that also have training images;
    `num_pooled` groups of one true class; `accuracy` over these of the class with the highest mean probability; and
    `predictions`, their CSV. The intervals of `metrics` are then those of a bootstrap of groups."""
    taxa: dict[str, Any] | None = None
    """Results by taxonomic rank (`--taxa`): `rollup`, the smallest probability of a reported taxon; `num_unsure`, images
    without one; `accuracy` of the reported taxa; and `ranks`, from the classes up."""

    @model_serializer(mode="wrap")
    def _omit_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        return {key: value for key, value in found.items() if key not in ("groups", "taxa") or value is not None}


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
    """Input of the network: image_size, eval_image_size, resize, interpolation, crop_pct, fill, mean, std."""
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
    """Read a record.json, or that of a run directory, and return it with its file. Raises RecordError or UsageError."""
    file = path / "record.json" if path.is_dir() else path
    if not file.exists() or is_cross_validation(path):
        hint = "pass the folder of a run, such as runs/NAME, or a record.json"
        raise missing_run(path, f"run or record not found: {file}", hint)
    if not file.is_file():
        raise RecordError(f"{file} is not a regular file")
    try:
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # also of long numbers and deep lists
        raise RecordError(f"cannot read {file} as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RecordError(f"{file} contains a {type(raw).__name__}, not a record")
    if raw.get("schema_version", 1) != 1:
        raise RecordError(f"{file}: schema_version {raw['schema_version']!r} is unknown; this version reads 1")
    record = _validate(text, f"{file}: ")
    for key in record.model_extra or {}:
        near = difflib.get_close_matches(key, ("test_accuracy", "num_test", "predictions"), 1, 0.8)
        if key.lower() in ("accuracy", "acc", "test_acc") and not record.predictions:
            near = ["test_accuracy"]
        if near and near[0] not in record.model_fields_set:
            unit = " (0 to 1)" if near == ["test_accuracy"] else ""
            raise RecordError(f"{file}: unknown key '{key}': did you mean '{near[0]}'{unit}?")
    return record, file


def predictions_file(record: RunRecord, folder: Path, subset: str) -> Path | None:
    """Return the file of predictions that a record in a folder names. Raises RecordError if its path is absolute."""
    name = record.predictions.get(subset)
    if name is not None and Path(name).anchor:
        problem = f"the record names its predictions by an absolute path, {name}"
        raise RecordError(problem, "write the path relative to the record")
    return None if name is None else folder / name


def missing_run(path: Path, text: str, hint: str) -> UsageError:
    """Return the error for a path without a finished run. text, hint: unless it is a cross-validation or unfinished."""
    if is_cross_validation(path):
        text, hint = f"{path} is a cross-validation, not a single run", "pass the folder of a fold inside it"
    elif (path / "config.yaml").is_file() and not (path / "record.json").is_file():
        text, hint = f"the training of {path} is not finished", f"resume it: inat-ft train --resume {path}"
    elif not path.exists():
        runs = Path(os.environ.get("INAT_FT_RUNS_DIR") or "runs")
        with suppress(OSError):  # no such folder, or not readable
            if near := difflib.get_close_matches(path.name, os.listdir(runs), 1, 0.7):
                text += f": did you mean '{runs / near[0]}'?"
    return UsageError(text, hint)


def _validate(text: str, problem: str) -> RunRecord:
    try:
        return RunRecord.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise RecordError(f"{problem}{format_validation_error(error, RunRecord).message}") from None


def write_record(record: RunRecord, file: Path) -> None:
    """Write a record as JSON, atomically. Raises RecordError, and writes nothing, when it is invalid."""
    text = record.model_dump_json(indent=2)
    _validate(text, f"cannot write {file}: ")
    write_text(file, text + "\n")


def check_output(file: Path, run: Path | None = None, kind: str = "file") -> None:
    """Raise UsageError if an output of this kind cannot be written, or would replace a file of a run.

    That is a file beside a record, or in the resolved folder `run`.
    """
    check_writable(file, kind)
    own = "record.json", "config.yaml", "metrics.jsonl", "model.safetensors", "resume.pt", "predictions-"
    found = Path(os.path.realpath(file))
    is_own = found.is_file() and found.name.startswith(own)
    if is_own and (found.parent == run or found.with_name("record.json").is_file()):
        raise UsageError(f"{file} belongs to the run in its folder", "name another file")


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
    file = Path(os.path.realpath(file)) if file.is_symlink() else file
    temporary = file.parent / f".{file.name}.{uuid4().hex[:8]}.tmp"
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):  # root could replace a device by a file
            raise StorageError(f"cannot write {file}: it is a device or a pipe", "name a file")
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(0o600 if file.exists() else 0o666, exist_ok=False)
        mode = stat.S_IMODE((file if file.exists() else temporary).stat().st_mode)
        yield temporary
        with temporary.open("r+b") as written:  # Windows syncs only writable files
            os.fsync(written.fileno())
        temporary.chmod(mode)  # libraries may have replaced the file
        temporary.replace(file)
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        advice = "free some space, or choose another folder" if is_disk_full(cause) else "choose a writable folder"
        raise StorageError(f"cannot write {file}: {cause.strerror or cause}", advice) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
