"""All metrics of one set of predictions: of all images, of each class, and the confusion matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import PluginError
from inat_ft.metrics.base import installed_metrics, measure
from inat_ft.metrics.macro import class_counts
from inat_ft.metrics.predictions import Predictions
from inat_ft.metrics.proportions import class_f1, proportion
from inat_ft.records import ClassMetrics, MetricValue


class Scores(NamedTuple):
    """Metrics by name, metrics of each class, and the plugin metrics that failed."""

    metrics: dict[str, MetricValue]
    per_class: list[ClassMetrics]
    errors: list[PluginError]


def score(p: Predictions) -> Scores:
    """Compute every installed metric that the predictions allow; a plugin that fails does not stop the others."""
    installed, errors = installed_metrics()
    found: dict[str, MetricValue] = {}
    for metric in installed:
        if p.probabilities is None and metric.needs_probabilities:
            continue
        try:
            found[metric.name] = measure(metric, p)
        except PluginError as error:
            errors.append(error)
    counts = (column.astype(int).tolist() for column in class_counts(p))
    per_class = [
        ClassMetrics(
            name=name,
            num_images=true,
            precision=proportion(hits, predicted),
            recall=proportion(hits, true),
            f1=class_f1(hits, true + predicted),
        )
        for name, hits, true, predicted in zip(p.classes, *counts, strict=True)
    ]
    return Scores(found, per_class, errors)


def confusion(p: Predictions) -> NDArray[np.int64]:
    """Return the number of images by true (rows) and predicted class (columns), `[C, C]`."""
    table = np.zeros((len(p.classes), len(p.classes)), np.int64)
    np.add.at(table, (p.true, p.predicted), 1)
    return table
