"""Metrics of a classifier, each with a 95 % interval.

All are computed from counts of how often each image is drawn, so that one matrix product gives a metric on every
bootstrap sample; with each image once they are the plain metrics, as scikit-learn defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    confidence = _shares(p).max(1)
    order = np.argsort(confidence, kind="stable")
    bins = np.empty(len(p), np.int64)
    bins[order] = np.arange(len(p)) * min(_BINS, len(p)) // len(p)
    member = np.eye(_BINS, dtype=np.float32)[bins]
    gaps = weights @ (member * (confidence - p.correct)[:, None].astype(np.float32))
    total: Floats = np.abs(gaps).sum(1) / weights.sum(1)
    return total


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


def draws(true: NDArray[np.int64], seed: int, number: int = DRAWS) -> Sequence[Weights]:
    """Bootstrap samples stratified by class, as blocks of counts `[B, N]`; B over all blocks is `number`."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(true == label) for label in np.unique(true)]
    size = max(1, min(number, _MATRIX_BYTES // (4 * len(true))))
    blocks = []
    for start in range(0, number, size):
        block = np.zeros((min(size, number - start), len(true)), np.float32)
        for places in members:
            block[:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), len(block))
        blocks.append(block)
    return blocks


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
    sampled: dict[str, list[Floats]] = {name: [] for name in names}
    per_class: list[NDArray[np.float64]] = []
    for block in draws(p.true, seed):
        for name in names:
            sampled[name].append(METRICS[name](p, block))
        per_class.append(_class_values(p, block))
    metrics = {name: _metric(METRICS[name](p, once(p))[0], np.concatenate(sampled[name])) for name in names}
    metrics["accuracy"] = wilson(int(p.correct.sum()), len(p))
    values, drawn = _class_values(p, once(p))[:, 0], np.concatenate(per_class, 1)
    counts = np.bincount(p.true, minlength=len(p.classes))
    rows = [
        ClassMetrics(
            name=name,
            num_images=int(counts[label]),
            **{
                key: _metric(values[kind, label], drawn[kind, :, label])
                for kind, key in enumerate(("precision", "recall", "f1"))
            },
        )
        for label, name in enumerate(p.classes)
    ]
    return metrics, rows


def confusion(p: Predictions) -> NDArray[np.int64]:
    """Images by true (rows) and predicted class (columns), `[C, C]`."""
    table = np.zeros((len(p.classes), len(p.classes)), np.int64)
    np.add.at(table, (p.true, p.predicted), 1)
    return table


def _metric(value: float, drawn: Floats) -> Metric:
    low, high = interval(drawn)
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
