"""Accuracy and log loss, proportions with intervals, and temperature scaling."""

from __future__ import annotations

import math

import numpy as np

from inat_ft.metrics.base import MeanMetric, Predictions
from inat_ft.metrics.bounds import Contributions, Floats
from inat_ft.records import MetricValue

_EPS = 1e-15
_Z = 1.959963984540054  # 97.5% quantile of the normal distribution
_FEW = 20  # correct or wrong images below which an interval is exact: Wilson's covers 84% only with one error or none


def proportion(hits: int, number: int) -> MetricValue:
    """Return a proportion with its 95% interval: Wilson's (1927), or Clopper and Pearson's for few hits or few misses.

    Without an image it is 0 and has no interval.
    """
    if not number:
        return MetricValue(value=0.0)
    misses = number - hits
    if min(hits, misses) < _FEW:
        low, high = _lower_bound(hits, number), 1 - _lower_bound(misses, number)
        return MetricValue(value=hits / number, low=low, high=high, method="exact")
    center, half = hits + _Z**2 / 2, _Z * math.sqrt(hits * misses / number + _Z**2 / 4)
    low, high = (center - half) / (number + _Z**2), (center + half) / (number + _Z**2)
    return MetricValue(value=hits / number, low=low, high=high, method="wilson")


def _lower_bound(hits: int, number: int) -> float:
    """Return the share at which `hits` or more of `number` have a probability of 2.5%, without the import of scipy."""
    misses = number - hits
    rare, low, high = hits <= misses, 0.0, 1.0
    logs = [math.log(math.comb(number, count)) for count in range(hits if rare else misses + 1)]
    for _ in range(60):
        middle = (low + high) / 2
        p = middle if rare else 1 - middle
        terms = (math.exp(c + k * math.log(p) + (number - k) * math.log1p(-p)) for k, c in enumerate(logs))
        tail = 1 - sum(terms) if rare else sum(terms)
        low, high = (low, middle) if tail > 0.025 else (middle, high)
    return low


class Accuracy(MeanMetric):
    """Share of images whose prediction is correct."""

    unit = "%"
    bounds = (0.0, 1.0)

    def per_image(self, predictions: Predictions) -> Floats:
        return predictions.correct.astype(np.float64)

    def interval(self, predictions: Predictions) -> MetricValue:
        return proportion(round(float(self.per_image(predictions).sum())), len(predictions))


class LogLoss(MeanMetric):
    """Mean negative log probability of the true class."""

    unit = "nats"
    needs_probabilities = True
    higher_is_better = False
    bounds = (0.0, math.inf)

    def per_image(self, predictions: Predictions) -> Floats:
        p = predictions.require_probabilities()
        return np.negative(np.log(np.clip(p[np.arange(len(p)), predictions.true], _EPS, 1)))

    def contributions(self, predictions: Predictions) -> Contributions:
        """Return the losses; the largest possible one is the largest seen, or the mean over all wrong classes."""
        found, p = self.per_image(predictions), predictions.require_probabilities()
        others = p.shape[1] - 1
        if_wrong = float((-np.log(np.clip(p, _EPS, 1)).sum(1) - found).mean()) / others if others else 0.0
        return Contributions(found, 0.0, max(float(found.max()), if_wrong))
