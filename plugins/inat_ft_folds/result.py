"""The result of a cross-validation and its summary file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from inat_ft.api.train import Run, RunLike
from inat_ft.errors import PluginError, RecordError, UsageError
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.metrics.base import Predictions, installed_metrics, value_of
from inat_ft.paths import FOLDS_SUMMARY
from inat_ft.records import SplitInfo, write_text
from inat_ft.tables import Table, Tabular
from inat_ft.validation import format_validation_error

OUT_OF_FOLD = "predictions-out-of-fold.csv"


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class Spread(_Model):
    """A metric on the held-out images of each fold."""

    mean: float
    deviation: float
    """Standard deviation over the folds, with one degree of freedom less than folds."""
    lowest: float
    highest: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least two values."""
        return cls(
            mean=mean(values), deviation=stdev(values), lowest=min(values), highest=max(values), values=list(values)
        )


def _is_inside(name: str) -> str:
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} is not the name of a folder inside the cross-validation")
    return name


class FoldEntry(_Model):
    """One fold in the summary. run: its folder, relative to the summary."""

    fold: int
    run: Annotated[str, AfterValidator(_is_inside)]
    num_train: int
    num_val: int
    best_epoch: int | None = None
    seconds: float | None = None


class Summary(_Model):
    """The content of cross-validation.json. Until all folds are trained, `complete` is false and the results are missing."""

    schema_version: Literal[1] = 1
    name: Annotated[str, AfterValidator(_is_inside)]
    created: str
    folds: int = Field(ge=2)
    seed: int
    """Seed of the training. The folds depend on the seed of the split only."""
    split: SplitInfo
    complete: bool = False
    metrics: dict[str, Spread] = {}
    """By name: accuracy, macro_f1, log_loss ..."""
    runs: list[FoldEntry] = []
    predictions: str | None = None
    """CSV of the out-of-fold predictions, relative to the summary."""
    seconds: float | None = None
    """Training time of all folds."""
    notes: list[str] = []

    @model_validator(mode="after")
    def _has_all_folds(self) -> Summary:
        lengths = {len(self.runs), *(len(spread.values) for spread in self.metrics.values())}
        if self.complete and (lengths != {self.folds} or "accuracy" not in self.metrics):
            raise ValueError(f"its runs or metrics are not those of {self.folds} folds")
        return self


@dataclass(frozen=True)
class CrossValidation(Tabular):
    """A finished cross-validation: its summary, its folder, and the run of each fold.

    found = inat_ft.train(split="splits/digits.csv", folds=5)
    found.accuracy.mean, found.accuracy.deviation
    """

    summary: Summary
    directory: Path
    runs: Sequence[Run]

    @classmethod
    def open(cls, path: RunLike) -> CrossValidation:
        """Open the folder of a cross-validation or its summary. Raises UsageError if it is unfinished, RecordError."""
        summary, directory = read_summary(Path(path))
        if not summary.complete:
            raise UsageError(
                f"the cross-validation {directory} is not finished", f"resume it: inat-ft train --resume {directory}"
            )
        try:
            return cls(summary, directory, [Run.open(directory / entry.run) for entry in summary.runs])
        except UsageError as error:  # a fold was removed
            raise UsageError(error.message, f"train it again: inat-ft train --resume {directory}") from None

    @property
    def name(self) -> str:
        """Name of the cross-validation."""
        return self.summary.name

    @property
    def accuracy(self) -> Spread:
        """Accuracy on the held-out images: mean, deviation, lowest, highest, and the value of each fold."""
        return self.summary.metrics["accuracy"]

    @property
    def predictions(self) -> Path:
        """CSV with the prediction for each training and validation image, by the classifier that was not trained on it."""
        return self.directory / OUT_OF_FOLD

    @property
    def table(self) -> Table:
        """One row per fold."""
        columns = {"fold": "d", "training images": ",", "held-out images": ",", "accuracy": ".4f", "best epoch": "d"}
        rows = [
            (entry.fold, entry.num_train, entry.num_val, value, entry.best_epoch)
            for entry, value in zip(self.summary.runs, self.accuracy.values, strict=True)
        ]
        return Table(columns, rows, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary and the folder as `inat-ft train --folds --json` prints them."""
        return {**self.summary.model_dump(mode="json"), "directory": self.directory.as_posix()}

    def fold_predictions(self) -> list[Predictions]:
        """Return the predictions for the held-out images of each fold. Raises RecordError or UsageError."""
        return [read_fold(run) for run in self.runs]

    def __str__(self) -> str:
        found = self.accuracy
        return (
            f"{self.name}: validation accuracy {found.mean:.4f} ± {found.deviation:.4f} over {self.summary.folds} folds, "
            f"{self.directory}"
        )


def read_fold(run: Run) -> Predictions:
    """Return the predictions for the held-out images of a fold."""
    name = run.record.predictions.get("val")
    if name is None:
        raise RecordError(
            f"{run.directory} has no predictions, because its outputs are not finite", "train with a lower --lr"
        )
    return read_predictions(run.directory / name)


def pooled(folds: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all folds as one, in the order of the paths."""
    paths, hashes = ([value for fold in folds for value in getattr(fold, name)] for name in ("paths", "hashes"))
    order = sorted(range(len(paths)), key=paths.__getitem__)
    parts = [fold.probabilities for fold in folds if fold.probabilities is not None]
    return Predictions(
        folds[0].classes,
        [paths[row] for row in order],
        [hashes[row] for row in order],
        np.concatenate([fold.true for fold in folds])[order],
        np.concatenate([fold.predicted for fold in folds])[order],
        np.concatenate(parts)[order] if len(parts) == len(folds) else None,
    )


def spreads(folds: Sequence[Predictions]) -> tuple[dict[str, Spread], list[PluginError]]:
    """Return each installed metric over the folds, and the errors of the metric plugins that failed."""
    metrics, errors = installed_metrics()
    found: dict[str, Spread] = {}
    for metric in metrics:
        if metric.needs_probabilities and any(fold.probabilities is None for fold in folds):
            continue
        try:
            found[metric.name] = Spread.of([value_of(metric, fold) for fold in folds])
        except PluginError as error:
            errors.append(error)
    return found, errors


def read_summary(path: Path) -> tuple[Summary, Path]:
    """Return the summary of a cross-validation and its directory. Raises UsageError or RecordError."""
    file = path / FOLDS_SUMMARY if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"{path} is not a cross-validation: it has no {FOLDS_SUMMARY}", "start one: inat-ft train --folds 5"
        )
    try:
        return Summary.model_validate(json.loads(file.read_text(encoding="utf-8"))), file.parent
    except ValidationError as error:
        raise RecordError(f"{file}: {format_validation_error(error, Summary).message}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"cannot read {file} as JSON: {error}") from None


def write_summary(summary: Summary, directory: Path) -> None:
    """Write the summary atomically."""
    write_text(directory / FOLDS_SUMMARY, summary.model_dump_json(indent=2) + "\n")
