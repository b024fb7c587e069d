"""The validation results of a run, which several trackers log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.predictions import confusion, read_predictions
from inat_ft.metrics.base import get_metric
from inat_ft.metrics.builtin import proportion
from inat_ft.records import Evaluation, MetricValue, RunRecord, predictions_file

CLASS_COLUMNS = ("class", "images", "precision", "recall", "f1")


@dataclass(frozen=True)
class Results:
    """Metrics and confusion matrix `[C, C]` on a subset. Rows are true classes."""

    subset: str
    num_images: int
    classes: tuple[str, ...]
    metrics: dict[str, MetricValue]
    confusion: NDArray[np.int64]

    def scalars(self) -> dict[str, float]:
        """Return the metrics by names such as `test/accuracy`, with the bounds of their intervals."""
        bounds = {"": "value", "_low": "low", "_high": "high"}
        named = {
            f"{self.subset}/{name}{suffix}": getattr(value, bound)
            for name, value in self.metrics.items()
            for suffix, bound in bounds.items()
        }
        return {name: float(value) for name, value in named.items() if value is not None}

    def class_rows(self) -> list[tuple[Any, ...]]:
        """Return one row per class: CLASS_COLUMNS."""
        hits, true, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        parts = (
            hits / np.maximum(predicted, 1),
            hits / np.maximum(true, 1),
            2 * hits / np.maximum(true + predicted, 1),
        )
        return list(zip(self.classes, true.tolist(), *(part.tolist() for part in parts), strict=True))


def validation(record: RunRecord, directory: Path) -> Results | None:
    """Return the results of the best epoch on the validation images; None if there are no predictions.

    Only accuracy has an interval: those of the other metrics need scipy.stats, whose import takes most of a second.
    """
    file = predictions_file(record, directory, "val")
    if file is None or not file.is_file():
        return None
    p = read_predictions(file)
    metrics = {"accuracy": proportion(int(p.correct.sum()), len(p))}
    for other in ("balanced_accuracy", "log_loss", "ece"):
        metrics[other] = MetricValue(value=get_metric(other).value(p))
    found = Results("val", len(p), p.classes, metrics, confusion(p))
    present = (found.confusion.sum(0) + found.confusion.sum(1)) > 0
    metrics["macro_f1"] = MetricValue(value=float(np.mean([row[4] for row in found.class_rows()], where=present)))
    return found


def evaluated(record: RunRecord, subset: str) -> Results | None:
    """Return the results of `inat-ft eval` on a subset; None if there are none."""
    found: Evaluation | None = getattr(record, subset)
    if found is None:
        return None
    table = np.array(found.confusion, np.int64)
    return Results(subset, found.num_images, tuple(record.classes), found.metrics, table)


def summary(record: RunRecord) -> dict[str, Any]:
    """Return the facts of a run beside its metrics: fingerprint of the manifest, sizes, parameters, time."""
    split, parameters = record.split, record.parameters
    facts: dict[str, Any] = {f"seconds/{part}": seconds for part, seconds in record.seconds.items()}
    facts |= {"best_epoch": record.best_epoch, "images_per_s": record.images_per_s}
    if split:
        facts |= {"manifest_fingerprint": split.fingerprint}
        facts |= {f"images/{subset}": number for subset, number in split.counts.items()}
    if parameters:
        facts |= {"parameters/total": parameters.total, "parameters/trained": parameters.trained}
    facts |= {"weights_sha256": record.weights_sha256, "optimizer_steps": record.optimizer_steps}
    return {key: value for key, value in facts.items() if value is not None}


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a run under dotted names, without those of its name and its trackers."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if prefix or key not in ("name", "track"):
            name = f"{prefix}{key}"
            found |= flat_config(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
