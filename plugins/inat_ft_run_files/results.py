"""The validation results of a run, which several trackers log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import InatFtError
from inat_ft.evaluation.predictions import confusion, read_predictions
from inat_ft.metrics.base import Predictions, get_metric
from inat_ft.records import Evaluation, MetricValue, RunRecord, predictions_file

VALIDATED = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
"""Metrics of the validation images after a training."""
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

    The metrics and intervals are those of `inat-ft eval`, also for images in groups.
    """
    file = predictions_file(record, directory, "val")
    if file is None or not file.is_file():
        return None
    p = read_predictions(file)
    metrics = {name: get_metric(name).interval(p) for name in VALIDATED}
    if _is_grouped(record, directory):
        metrics = _clustered(p, metrics, record, directory)
    return Results("val", len(p), p.classes, metrics, confusion(p))


def _is_grouped(record: RunRecord, directory: Path) -> bool:
    """Return whether the split has groups of images, from the first line of the manifest."""
    file = directory / record.split.manifest if record.split else None
    if file is None or not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        header = lines.readline()
    return '"group_by"' in header and '"group_by": null' not in header


def _clustered(
    p: Predictions, metrics: dict[str, MetricValue], record: RunRecord, directory: Path
) -> dict[str, MetricValue]:
    """Return the metrics with intervals for grouped images; without intervals if the groups are not known."""
    from inat_ft_groups.groups import clustered, with_groups

    from inat_ft.evaluation.predict import manifest_of

    try:
        known = with_groups(p, manifest_of(record, directory))
    except InatFtError:
        known = None
    if known is None or known.groups is None:
        return {name: MetricValue(value=each.value) for name, each in metrics.items()}
    return clustered(p, metrics, known.groups)


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
