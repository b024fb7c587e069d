"""Predictions, the base classes of metrics, and metrics by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import PluginError
from inat_ft.metrics.bounds import Contributions, Floats
from inat_ft.records import MetricValue
from inat_ft.registry import FEATURES, METRICS, call_plugin, get, plugin_label, plugins

_BUILTIN = (
    *("accuracy", "balanced_accuracy", "top3_accuracy", "macro_precision", "macro_recall", "macro_f1"),
    *("log_loss", "brier", "ece"),
)


@dataclass(frozen=True)
class Predictions:
    """The true and predicted class of each of N images.

    hashes: SHA-256 of each file in hex, "" where unknown. true, predicted: int64 `[N]`, indices into classes.
    probabilities: float64 `[N, C]`, each row sums to 1; None when only the predicted class is known. groups: int64 `[N]`, the
    number of the group of each image, such as its sequence or site; None if images are independent.
    """

    classes: tuple[str, ...]
    paths: Sequence[str]
    hashes: Sequence[str]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: Floats | None = None
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.true)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, bool `[N]`."""
        return np.equal(self.true, self.predicted)

    def require_probabilities(self) -> Floats:
        """Return the probabilities `[N, C]`. Raises ValueError when there are none."""
        if self.probabilities is None:
            raise ValueError("these predictions have no probabilities")
        return self.probabilities

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """Return the images at `rows`, in that order, as a copy without paths, hashes and groups."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Predictions(self.classes, (), (), self.true[rows], self.predicted[rows], probabilities)


class Metric(ABC):
    """A number that describes how well a classifier predicts.

    Implement `value`, and register the class in the entry-point group `inat_ft.metrics`. Intervals, paired tests and groups
    of seeds follow from the contribution of each image to the metric. By default these are found with the jackknife, which
    suits every smooth function of the predictions. Override `contributions` where they are known exactly.

    `value` must be a pure function and must not depend on the order of the images.
    """

    name: str = ""
    """Name under which the metric is registered; set by `get_metric`."""
    label: str = ""
    """Name in tables and sentences, such as "macro F1". Default: the registered name with spaces."""
    unit: str = ""
    """Unit: "%" for shares from 0 to 1, whose differences are printed in percentage points; otherwise such as "nats"."""
    needs_probabilities: bool = False
    """Whether `value` reads `predictions.probabilities`; without them the metric is left out."""
    higher_is_better: bool = True
    """Whether a larger value is better."""
    averages_classes: bool = False
    """Whether each class counts the same, so that classes with few images make the metric uncertain."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest possible value."""

    @abstractmethod
    def value(self, predictions: Predictions) -> float:
        """Return the metric of N >= 1 images. Classes without images are possible."""

    def contributions(self, predictions: Predictions) -> Contributions:
        """Return the contribution of each image; their mean is the metric."""
        return get(FEATURES, "jackknife").load()(self, predictions)  # type: ignore[no-any-return]  # features are untyped

    def interval(self, predictions: Predictions) -> MetricValue:
        """Return the metric with its 95% interval."""
        found = self.contributions(predictions)
        low, high = np.clip(found.interval(), *self.bounds).tolist()
        return MetricValue(value=found.value, low=low, high=high, method="Gaffke")


class MeanMetric(Metric):
    """The mean of one number per image. Implement `per_image`; `bounds` must be finite."""

    @abstractmethod
    def per_image(self, predictions: Predictions) -> Floats:
        """Return the number of each image, float64 `[N]`."""

    def value(self, predictions: Predictions) -> float:
        return self.contributions(predictions).value

    def contributions(self, predictions: Predictions) -> Contributions:
        return Contributions(np.asarray(self.per_image(predictions), np.float64), *self.bounds)


def get_metric(name: str) -> Metric:
    """Return the metric registered under `name`. Raises ConfigError or PluginError."""
    metric: Metric = get(METRICS, name).load()()
    metric.name = name
    metric.label = metric.label or name.replace("_", " ")
    return metric


def installed_metrics() -> tuple[list[Metric], list[PluginError]]:
    """Return the installed metrics, the built-in ones first, and the errors of those that cannot be loaded."""
    found: list[Metric] = []
    errors: list[PluginError] = []
    names = sorted(plugins(METRICS))
    for name in [*(name for name in _BUILTIN if name in names), *(name for name in names if name not in _BUILTIN)]:
        try:
            found.append(get_metric(name))
        except PluginError as error:
            errors.append(error)
    return found, errors


def measure(metric: Metric, predictions: Predictions) -> MetricValue:
    """Return a metric with its interval. Raises PluginError when a plugin fails or returns NaN or infinity."""
    found = call_plugin(metric.interval, predictions)
    _require_finite(metric, found.value)
    return found


def value_of(metric: Metric, predictions: Predictions) -> float:
    """Return a metric without its interval. Raises PluginError when a plugin fails or returns NaN or infinity."""
    found = float(call_plugin(metric.value, predictions))
    _require_finite(metric, found)
    return found


def contributions_of(metric: Metric, predictions: Predictions) -> Contributions:
    """Return the contributions of a metric. Raises PluginError when a plugin fails or returns NaN or infinity."""
    found = call_plugin(metric.contributions, predictions)
    _require_finite(metric, float(found.values.sum()))
    per_image = len(found.values) == len(predictions)
    return replace(found, member=predictions.groups) if per_image else found


def _require_finite(metric: Metric, value: float) -> None:
    if not math.isfinite(value):
        raise PluginError(f"{plugin_label(METRICS, type(metric))} returned {value}, which is not finite")
