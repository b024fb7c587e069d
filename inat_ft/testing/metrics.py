"""The conformance check of a metric plugin."""

from __future__ import annotations

import numpy as np

from inat_ft.metrics.base import Metric, contributions_of, measure
from inat_ft.metrics.predictions import Predictions

_CLASSES = 4
_TEST_SETS = 40


def check_metric(metric: Metric, images: int = 150) -> None:
    """Check that a metric keeps its contract, and that its 95 % interval covers the value of a large population.

    images: in each of 40 simulated test sets. Raises AssertionError or PluginError.
    """
    rng = np.random.default_rng(0)
    p = _simulate(rng, images, metric.needs_probabilities)
    value = metric.value(p)
    least, most = metric.bounds
    assert least <= value <= most, f"the value {value} is outside the bounds {least} to {most}"
    assert np.isclose(metric.value(p.take(rng.permutation(images))), value), (
        "the value depends on the order of the images"
    )
    assert np.isclose(contributions_of(metric, p).value, value), "the mean of the contributions is not the value"
    one_class = p.take(np.flatnonzero(p.true == 0))
    assert np.isfinite(metric.value(one_class)), "the value of images of a single class is not finite"
    perfect = Predictions(p.classes, (), (), p.true, p.true, _certain(p) if metric.needs_probabilities else None)
    better = metric.value(perfect) >= value if metric.higher_is_better else metric.value(perfect) <= value
    assert better, "perfect predictions have a worse value: check higher_is_better"
    truth = metric.value(_simulate(rng, 100_000, metric.needs_probabilities))
    covered = 0
    for _ in range(_TEST_SETS):
        found = measure(metric, _simulate(rng, images, metric.needs_probabilities))
        assert found.low is not None and found.high is not None, "interval() returns no interval"
        assert found.low <= found.value <= found.high, f"the value {found.value} is outside its own interval"
        covered += found.low <= truth <= found.high
    assert covered >= 0.8 * _TEST_SETS, f"{covered} of {_TEST_SETS} intervals cover the value of the population"


def _simulate(rng: np.random.Generator, number: int, with_probabilities: bool) -> Predictions:
    """Return predictions of four classes, about 70 % correct, with calibrated probabilities."""
    true = rng.integers(0, _CLASSES, number)
    logits = rng.normal(0, 1, (number, _CLASSES)) + 2.0 * np.eye(_CLASSES)[true]
    p = np.exp(2.0 * logits)
    p /= p.sum(1, keepdims=True)
    classes = tuple(f"class{label}" for label in range(_CLASSES))
    return Predictions(classes, (), (), true, p.argmax(1), p if with_probabilities else None)


def _certain(p: Predictions) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.eye(_CLASSES)[p.true]
