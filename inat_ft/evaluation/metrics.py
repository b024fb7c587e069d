"""Metrics of a classifier, each with a 95 % interval.

All are computed from counts of how often each image is drawn, so that one matrix product gives a metric on every
bootstrap sample; with each image once they are the plain metrics, as scikit-learn defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.predictions import Predictions
from inat_ft.records import ClassMetrics, Metric

Floats = NDArray[np.float64]
Weights = NDArray[np.float32]

DRAWS = 2000
"""Bootstrap samples behind every interval."""

_BINS = 15
_TINY = 1e-15
_MATRIX_BYTES = 256 * 2**20


def accuracy(p: Predictions, weights: Weights) -> Floats:
    """Share of images that are right. weights: float32 `[B, N]`, how often each image is drawn; returns `[B]`."""
    return _mean(weights, p.correct)


def balanced_accuracy(p: Predictions, weights: Weights) -> Floats:
    """Mean recall of the classes that occur."""
    hits, true, _ = _counts(p, weights)
    occurs = np.bincount(p.true, minlength=len(p.classes)) > 0
    mean: Floats = _ratio(hits, true)[:, occurs].mean(1)
    return mean


def macro_precision(p: Predictions, weights: Weights) -> Floats:
    """Mean precision of the classes that occur or are predicted; 0 for one that is never predicted."""
    hits, _, predicted = _counts(p, weights)
    mean: Floats = _ratio(hits, predicted)[:, _present(p)].mean(1)
    return mean


def macro_recall(p: Predictions, weights: Weights) -> Floats:
    """Mean recall of the classes that occur or are predicted."""
    hits, true, _ = _counts(p, weights)
    mean: Floats = _ratio(hits, true)[:, _present(p)].mean(1)
    return mean


def macro_f1(p: Predictions, weights: Weights) -> Floats:
    """Mean F1 of the classes that occur or are predicted."""
    hits, true, predicted = _counts(p, weights)
    mean: Floats = _ratio(2 * hits, true + predicted)[:, _present(p)].mean(1)
    return mean


def top3_accuracy(p: Predictions, weights: Weights) -> Floats:
    """Share of images whose class is among the three most probable."""
    shares = _shares(p)
    rank = (shares > shares[np.arange(len(p)), p.true][:, None]).sum(1)
    return _mean(weights, rank < 3)


def log_loss(p: Predictions, weights: Weights) -> Floats:
    """Mean negative log probability of the true class, in nats."""
    return _mean(weights, -np.log(np.clip(_shares(p)[np.arange(len(p)), p.true], _TINY, 1)))


def brier(p: Predictions, weights: Weights) -> Floats:
    """Mean squared distance of the probabilities from the truth, over all classes; 0 to 2 (Brier 1950)."""
    truth = np.eye(len(p.classes))[p.true]
    return _mean(weights, ((_shares(p) - truth) ** 2).sum(1))


def ece(p: Predictions, weights: Weights) -> Floats:
    """Expected calibration error over 15 bins of equally many images (Nixon et al. 2019, arXiv 1904.01685)."""
    total: Floats = np.abs(_gaps(p, weights)).sum(1)
    return total


def _gaps(p: Predictions, weights: Weights) -> Floats:
    """Confidence minus share that is right in each bin, times the bin's share of the images, `[B, 15]`."""
    confidence = _shares(p).max(1)
    order = np.argsort(confidence, kind="stable")
    bins = np.empty(len(p), np.int64)
    bins[order] = np.arange(len(p)) * min(_BINS, len(p)) // len(p)
    member = np.eye(_BINS, dtype=np.float32)[bins]
    gaps = weights @ (member * (confidence - p.correct)[:, None].astype(np.float32))
    shares: Floats = gaps.astype(np.float64) / weights.sum(1, keepdims=True, dtype=np.float64)
    return shares


def _ece_interval(p: Predictions, samples: Draws) -> tuple[float, float]:
    """An interval of the calibration error that allows for its bias.

    Chance gaps count as errors whatever their sign, so the figure lies above the truth, and bootstrap samples lie above
    the figure. Reflecting the samples about the figure (the basic bootstrap; Davison and Hinkley 1997, 5.2) undoes that;
    0 is taken in unless the gaps exceed what they are by chance in 95 % of samples. Quantiles of 1 and 99 %, since with
    fewer a simulation of 300 to 1,000 images found the truth in 87 to 94 % only; so it is 89 to 98 %.
    """
    plain = _gaps(p, once(p))
    gaps = samples.of(_gaps, p)
    value, drawn = float(np.abs(plain).sum()), np.abs(gaps).sum(1)
    low, high = np.quantile(drawn, [0.01, 0.99])
    by_chance = np.quantile(np.abs(gaps - plain).sum(1), 0.95)
    return (0.0 if value <= by_chance else max(0.0, 2 * value - high)), min(1.0, max(value, 2 * value - low))


METRICS: dict[str, Callable[[Predictions, Weights], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "top3_accuracy": top3_accuracy,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "macro_f1": macro_f1,
    "log_loss": log_loss,
    "brier": brier,
    "ece": ece,
}
NEED_PROBABILITIES = ("top3_accuracy", "log_loss", "brier", "ece")
LOWER_IS_BETTER = ("log_loss", "brier", "ece")


def once(p: Predictions) -> Weights:
    """Each image once, `[1, N]`."""
    return np.ones((1, len(p)), np.float32)


@dataclass(frozen=True)
class Draws:
    """Bootstrap samples stratified by class, as blocks of counts float32 `[B, N]`; B over all blocks is `number`.

    true: int64 `[N]`. The same blocks each time they are gone through; kept only where there are few of them.
    """

    true: NDArray[np.int64]
    seed: int = 0
    number: int = DRAWS
    _kept: list[Weights] = field(default_factory=list, repr=False)

    def __iter__(self) -> Iterator[Weights]:
        if self._kept:
            yield from self._kept
            return
        keep = 4 * self.number * len(self.true) <= _MATRIX_BYTES
        for block in self._drawn():
            if keep:
                self._kept.append(block)
            yield block

    def _drawn(self) -> Iterator[Weights]:
        rng = np.random.default_rng(self.seed)
        members = [np.flatnonzero(self.true == label) for label in np.unique(self.true)]
        size = max(1, min(self.number, _MATRIX_BYTES // (4 * len(self.true))))
        for start in range(0, self.number, size):
            block = np.zeros((min(size, self.number - start), len(self.true)), np.float32)
            for places in members:
                block[:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), len(block))
            yield block

    def of(self, measure: Callable[[Predictions, Weights], Floats], p: Predictions) -> Floats:
        """A metric on all samples, `[number]`."""
        return np.concatenate([measure(p, block) for block in self])


def interval(values: Floats) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def wilson(right: int, number: int) -> Metric:
    """A share with its Wilson interval (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, number).proportion_ci(method="wilson")
    return Metric(value=right / number, low=float(found.low), high=float(found.high), method="wilson")


def all_metrics(p: Predictions, seed: int = 0) -> tuple[dict[str, Metric], list[ClassMetrics]]:
    """Every metric that the predictions allow, and precision, recall and F1 of every class."""
    names = [name for name in METRICS if p.probabilities is not None or name not in NEED_PROBABILITIES]
    samples = Draws(p.true, seed)
    metrics = {name: one_metric(p, name, samples) for name in names}
    values = _class_values(p, once(p))[:, 0]
    drawn = np.concatenate([_class_values(p, block) for block in samples], 1)
    counts, predicted = (np.bincount(labels, minlength=len(p.classes)) for labels in (p.true, p.predicted))
    rows = [
        ClassMetrics(
            name=name,
            num_images=int(counts[label]),
            **{
                key: _metric(values[kind, label], drawn[kind, :, label], int(number))
                for kind, (key, number) in enumerate(
                    (("precision", predicted[label]), ("recall", counts[label]), ("f1", counts[label]))
                )
            },
        )
        for label, name in enumerate(p.classes)
    ]
    return metrics, rows


def one_metric(p: Predictions, name: str, samples: Draws) -> Metric:
    """A metric by its name, with its interval."""
    if name == "accuracy":
        return wilson(int(p.correct.sum()), len(p))
    value = float(METRICS[name](p, once(p))[0])
    if name == "ece":
        low, high = _ece_interval(p, samples)
        return Metric(value=value, low=low, high=high, method="bootstrap, reflected")
    return _metric(value, samples.of(METRICS[name], p), len(p))


def confusion(p: Predictions) -> NDArray[np.int64]:
    """Images by true (rows) and predicted class (columns), `[C, C]`."""
    table = np.zeros((len(p.classes), len(p.classes)), np.int64)
    np.add.at(table, (p.true, p.predicted), 1)
    return table


def _metric(value: float, drawn: Floats, number: int) -> Metric:
    """With a bootstrap interval; that of a share of `number` images that is 0 or 1 in every sample is Wilson's."""
    low, high = interval(drawn)
    if low == high == value and value in (0, 1) and number:
        return wilson(int(value) * number, number)
    return Metric(value=float(value), low=low, high=high, method="bootstrap")


def _class_values(p: Predictions, weights: Weights) -> NDArray[np.float64]:
    """Precision, recall and F1, `[3, B, C]`."""
    hits, true, predicted = _counts(p, weights)
    return np.stack([_ratio(hits, predicted), _ratio(hits, true), _ratio(2 * hits, true + predicted)])


def _counts(p: Predictions, weights: Weights) -> tuple[Floats, Floats, Floats]:
    """Right, true and predicted images by class, each `[B, C]`."""
    eye = np.eye(len(p.classes), dtype=np.float32)
    true, predicted = eye[p.true], eye[p.predicted]
    return tuple((weights @ table).astype(np.float64) for table in (true * predicted, true, predicted))  # type: ignore[return-value]


def _present(p: Predictions) -> NDArray[np.bool_]:
    return np.bincount(np.concatenate([p.true, p.predicted]), minlength=len(p.classes)) > 0


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _mean(weights: Weights, values: NDArray[np.float64] | NDArray[np.bool_]) -> Floats:
    mean: Floats = (weights @ values.astype(np.float64)) / weights.sum(1, dtype=np.float64)
    return mean


def _shares(p: Predictions) -> Floats:
    if p.probabilities is None:
        raise ValueError("these predictions hold no probabilities")
    return p.probabilities


def fit_temperature(p: Predictions) -> float:
    """The temperature that gives these (validation) predictions the least log loss (Guo et al. 2017, 1706.04599)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(log_loss(at_temperature(p, float(np.exp(log_temperature))), once(p))[0])

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def at_temperature(p: Predictions, temperature: float) -> Predictions:
    """The same predictions with their log probabilities divided by a temperature; no prediction changes."""
    logits = np.log(np.clip(_shares(p), _TINY, 1)) / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return Predictions(p.classes, p.paths, p.hashes, p.true, p.predicted, shares / shares.sum(1, keepdims=True))
