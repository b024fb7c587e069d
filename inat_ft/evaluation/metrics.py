"""Metrics of a classifier, each with a 95 % interval that holds for few images too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.bounds import Floats
from inat_ft.evaluation.contributions import (
    BINS,
    LOWER_IS_BETTER,
    MACRO,
    METRICS,
    NEED_PROBABILITIES,
    SHARES_OF_IMAGES,
    calibration_bins,
    class_counts,
    ece,
    log_loss,
    probabilities,
)
from inat_ft.evaluation.predictions import Predictions
from inat_ft.records import ClassMetrics, Metric

__all__ = ["LOWER_IS_BETTER", "METRICS", "NEED_PROBABILITIES", "ece", "log_loss"]

Weights = NDArray[np.float32]

NUM_BOOTSTRAP = 2000
"""Bootstrap samples behind the interval of the calibration error."""

BOUNDED = "Gaffke"
"""The method of intervals from `bounds`."""

_FEW = 20
"""Right or wrong images below which an interval is exact: Wilson's covers 84 % only with one error or none."""
_EPS = 1e-15
_MATRIX_BYTES = 64 * 2**20


def unit_weights(p: Predictions) -> Weights:
    """Each image once, `[1, N]`."""
    return np.ones((1, len(p)), np.float32)


@dataclass(frozen=True)
class BootstrapWeights:
    """Bootstrap samples of images as blocks of counts float32 `[B, N]`; B over all blocks is `number`.

    true: int64 `[N]`. The same blocks each time.
    """

    true: NDArray[np.int64]
    seed: int = 0
    number: int = NUM_BOOTSTRAP

    def __iter__(self) -> Iterator[Weights]:
        images, rng = len(self.true), np.random.default_rng(self.seed)
        size = max(1, min(self.number, _MATRIX_BYTES // (4 * images)))
        for start in range(0, self.number, size):
            drawn = rng.multinomial(images, np.full(images, 1 / images), min(size, self.number - start))
            yield drawn.astype(np.float32)

    def of(self, measure: Callable[[Predictions, Weights], Floats], p: Predictions) -> Floats:
        """A metric on all samples, `[number, ...]`."""
        return np.concatenate([measure(p, block) for block in self])


def interval(values: Floats, tail: float = 0.025) -> tuple[float, float]:
    """The quantiles at `tail` and 1 - `tail`."""
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def wilson(right: int, number: int, alpha: float = 0.05) -> Metric:
    """A share with its Wilson interval (Wilson 1927)."""
    return _binomial(right, number, alpha, "wilson")


def proportion(right: int, number: int) -> Metric:
    """A share with its 95 % interval: Wilson's, or Clopper and Pearson's where few images are right or few are wrong."""
    return _binomial(right, number, 0.05, "exact" if min(right, number - right) < _FEW else "wilson")


def _binomial(right: int, number: int, alpha: float, method: str) -> Metric:
    from scipy.stats import binomtest

    found = binomtest(right, number).proportion_ci(1 - alpha, method=method)
    return Metric(value=right / number, low=float(found.low), high=float(found.high), method=method)


def compute_metrics(p: Predictions, seed: int = 0) -> tuple[dict[str, Metric], list[ClassMetrics]]:
    """Every metric that the predictions allow, and precision, recall and F1 of every class."""
    names = [name for name in METRICS if p.probabilities is not None or name not in NEED_PROBABILITIES]
    hits, true, predicted = (counts.astype(int).tolist() for counts in class_counts(p))
    rows = [
        ClassMetrics(
            name=name,
            num_images=true[label],
            precision=_share(hits[label], predicted[label]),
            recall=_share(hits[label], true[label]),
            f1=_f1(hits[label], true[label] + predicted[label]),
        )
        for label, name in enumerate(p.classes)
    ]
    return {name: compute_metric(p, name, BootstrapWeights(p.true, seed)) for name in names}, rows


def compute_metric(p: Predictions, name: str, samples: BootstrapWeights) -> Metric:
    """A metric by its name, with its interval. samples: for the calibration error."""
    if name in SHARES_OF_IMAGES:
        found = METRICS[name](p)
        return proportion(round(float(found.values.sum())), len(p))
    if name == "ece":
        low, high = _ece_interval(p, samples)
        return Metric(value=ece(p).value, low=low, high=high, method="bootstrap, reflected")
    if name in MACRO and p.correct.all():
        return Metric(value=METRICS[name](p).value, low=_least_recall(p), high=1.0, method="exact")
    found = METRICS[name](p)
    low, high = found.interval()
    highest = 1.0 if name in MACRO else 2.0 if name == "brier" else np.inf
    return Metric(value=found.value, low=max(0.0, low), high=min(highest, high), method=BOUNDED)


def _least_recall(p: Predictions) -> float:
    """The least balanced accuracy with which all these images are right in 2.5 % of test sets.

    With recall r of a class of n images that is the least mean of r where the product of all r^n is 0.025; there r is
    proportional to n, up to 1.
    """
    from scipy.optimize import brentq

    counts = np.bincount(p.true)
    counts = counts[counts > 0].astype(np.float64)

    def excess(log_scale: float) -> float:
        return float((counts * np.minimum(0, log_scale + np.log(counts))).sum() - np.log(0.025))

    high = -float(np.log(counts.min()))
    low = -float(np.log(counts.max())) + float(np.log(0.025)) / float(counts.min())
    return float(np.minimum(1, np.exp(brentq(excess, low, high)) * counts).mean())


def _gaps(p: Predictions, weights: Weights) -> Floats:
    """Confidence minus accuracy in each bin, times the bin's share of the images, `[B, 15]`."""
    member = np.eye(BINS, dtype=np.float32)[calibration_bins(p)]
    gaps = weights @ (member * (probabilities(p).max(1) - p.correct)[:, None].astype(np.float32))
    shares: Floats = gaps.astype(np.float64) / weights.sum(1, keepdims=True, dtype=np.float64)
    return shares


def _ece_interval(p: Predictions, samples: BootstrapWeights) -> tuple[float, float]:
    """An interval of the calibration error that allows for its bias.

    Chance gaps count as errors whatever their sign, so the estimate lies above the population value, and bootstrap samples
    lie above the estimate. Reflecting the samples about the estimate (the basic bootstrap; Davison and Hinkley 1997, 5.2)
    corrects for that; 0 is included unless the gaps exceed what chance gives in 95 % of samples. Quantiles of 1 and
    99 %, since with 2.5 and 97.5 % a simulation of 300 to 1,000 images covered the population value in 87 to 94 % only.
    """
    plain = _gaps(p, unit_weights(p))
    gaps = samples.of(_gaps, p)
    value, drawn = ece(p).value, np.abs(gaps).sum(1)
    low, high = interval(drawn, 0.01)
    by_chance = np.quantile(np.abs(gaps - plain).sum(1), 0.95)
    return (0.0 if value <= by_chance else max(0.0, 2 * value - high)), min(1.0, max(value, 2 * value - low))


def _share(right: int, number: int) -> Metric:
    """Precision or recall of a class; without an image it is 0 and has no interval."""
    return proportion(right, number) if number else Metric(value=0.0)


def _f1(hits: int, images: int) -> Metric:
    """F1 of a class with `images` true plus predicted ones.

    It grows with the share j of hits among the images that are true or predicted, as 2j / (1 + j), and so do the ends of
    its interval.
    """
    if not images:
        return Metric(value=0.0)
    share = proportion(hits, images - hits)
    assert share.low is not None and share.high is not None
    value, low, high = (2 * part / (1 + part) for part in (share.value, share.low, share.high))
    return Metric(value=value, low=low, high=high, method=share.method)


def confusion(p: Predictions) -> NDArray[np.int64]:
    """Images by true (rows) and predicted class (columns), `[C, C]`."""
    table = np.zeros((len(p.classes), len(p.classes)), np.int64)
    np.add.at(table, (p.true, p.predicted), 1)
    return table


def fit_temperature(p: Predictions) -> float:
    """The temperature that gives these (validation) predictions the least log loss (Guo et al. 2017, 1706.04599)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(temperature_scale(p, float(np.exp(log_temperature)))).value

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def temperature_scale(p: Predictions, temperature: float) -> Predictions:
    """The same predictions with their log probabilities divided by a temperature; no prediction changes."""
    logits = np.log(np.clip(probabilities(p), _EPS, 1)) / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return Predictions(p.classes, p.paths, p.hashes, p.true, p.predicted, shares / shares.sum(1, keepdims=True))
