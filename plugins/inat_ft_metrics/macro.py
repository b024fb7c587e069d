"""Macro metrics: means over the classes of recall, precision or F1.

They are means of ratios. Each image contributes its share of the linearized metric. A class is measured against the mean of
all classes instead of its own, so that a class with a single image does not count as one without variance.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from inat_ft.metrics.base import Metric, Predictions
from inat_ft.metrics.bounds import Contributions, Floats
from inat_ft.metrics.roots import find_root
from inat_ft.records import MetricValue

_FEW = 30
"""Images per class up to which the bias of F1 is summed instead of expanded."""


class MacroMetric(Metric):
    """Mean over the classes of recall, of precision, or of F1, which counts both."""

    unit = "%"
    averages_classes = True
    bounds = (0.0, 1.0)
    recall = True
    precision = False

    def value(self, predictions: Predictions) -> float:
        return self.contributions(predictions).value

    def contributions(self, predictions: Predictions) -> Contributions:
        """Return the linearized share of each image."""
        p, recall, precision, present = predictions, self.recall, self.precision, self.present(predictions)
        labels, number = (p.true[p.correct], p.true, p.predicted), len(p.classes)
        hits, true, predicted = (np.bincount(label, minlength=number).astype(np.float64) for label in labels)
        credit = recall + precision
        images = recall * true + precision * predicted
        ratio = np.divide(credit * hits, images, out=np.zeros_like(hits), where=images > 0)
        value, center = float(ratio[present].mean()), float(ratio[images > 0].mean())
        share = np.divide(len(p) / present.sum(), images, out=np.zeros_like(hits), where=images > 0)
        charged = recall * share[p.true] + precision * share[p.predicted]
        values = value + credit * p.correct * share[p.true] - center * charged
        largest = credit * float(share.max())
        bias = _missing_bias(ratio, true if recall else predicted, present)
        if recall and precision:
            bias += _f1_bias(hits, true, predicted, present)
        return Contributions(values, value - largest * center, value + largest * (1 - center), bias)

    def present(self, predictions: Predictions) -> NDArray[np.bool_]:
        """Return which classes count, bool `[C]`: those that occur or are predicted."""
        labels = np.concatenate([predictions.true, predictions.predicted])
        return np.bincount(labels, minlength=len(predictions.classes)) > 0

    def interval(self, predictions: Predictions) -> MetricValue:
        """Return the metric with its interval; the lower bound is exact when all images are correct."""
        if not predictions.correct.all():
            return super().interval(predictions)
        return MetricValue(value=self.value(predictions), low=_least_recall(predictions), high=1.0, method="exact")


class BalancedAccuracy(MacroMetric):
    """Mean recall of the classes that occur."""

    def present(self, predictions: Predictions) -> NDArray[np.bool_]:
        return np.bincount(predictions.true, minlength=len(predictions.classes)) > 0


class MacroRecall(MacroMetric):
    """Mean recall of the classes that occur or are predicted."""


class MacroPrecision(MacroMetric):
    """Mean precision of the classes that occur or are predicted; 0 for one that is never predicted."""

    recall = False
    precision = True


class MacroF1(MacroMetric):
    """Mean F1 of the classes that occur or are predicted."""

    label = "macro F1"
    precision = True


def _least_recall(p: Predictions) -> float:
    """Return the least balanced accuracy with which all these images are correct in 2.5% of test sets.

    With recall r of a class of n images that is the least mean of r where the product of all r^n is 0.025; there r is
    proportional to n, up to 1.
    """
    counts = np.unique(p.true, return_counts=True)[1].astype(np.float64)

    def excess(log_scale: float) -> float:
        return float((counts * np.minimum(0, log_scale + np.log(counts))).sum() - np.log(0.025))

    high = -float(np.log(counts.min()))
    low = -float(np.log(counts.max())) + float(np.log(0.025)) / float(counts.min())
    return float(np.minimum(1, np.exp(find_root(excess, low, high, 1e-12)) * counts).mean())


def _missing_bias(ratio: Floats, images: Floats, present: NDArray[np.bool_]) -> float:
    """Return the bias from classes that count as 0 because by chance none of the few images is theirs."""
    occurring, missing = int((images > 0).sum()), int((present & (images == 0)).sum())
    if not missing:
        return 0.0
    by_chance = occurring / np.expm1(min(images.sum() / occurring, 50.0))
    return -min(missing, float(by_chance)) / int(present.sum()) * float(ratio[images > 0].mean())


def _f1_bias(hits: Floats, true: Floats, predicted: Floats, present: NDArray[np.bool_]) -> float:
    """Return the bias of macro F1 from few images per class, if all classes have the same recall.

    The worst of several assumptions: false positives are equally frequent in all classes, or are where they were seen; and,
    unless all classes have about as many images, the images were drawn at random, so that class counts vary as well.
    """
    occurs = true > 0
    recall, false = hits.sum() / true.sum(), predicted - hits
    alike = np.full(len(true), false.sum() / present.sum())
    sums = []
    for rates in (alike, false):
        distinct, counts = np.unique(np.stack([true[occurs], rates[occurs]]), axis=1, return_counts=True)
        found = [_class_f1_bias(int(number), float(recall), float(rate)) for number, rate in distinct.T]
        sums.append(float(np.dot(found, counts)))
    if true[present].var() > 0.5 * true[present].mean():
        sums.append(occurs.sum() * _random_class_f1_bias(true[occurs].mean(), float(recall), float(alike[0])))
    return min(sums) / int(present.sum())


def _class_f1_bias(number: int, recall: float, false: float) -> float:
    """Return the expected F1 of a class of `number` images with Poisson false positives, minus F1 of the expected counts."""
    whole = number * (1 + recall) + false
    if number > _FEW:
        bent = 2 * number * recall * (false - (number + false) * (1 - recall))
        return float(bent / whole**3)
    hits, wrong = np.arange(number + 1)[:, None], np.arange(int(false + 10 * np.sqrt(false)) + 11)
    weight = _binomial(number, recall)[:, None] * _poisson(wrong, false)
    return float((weight * 2 * hits / (number + hits + wrong)).sum()) - 2 * number * recall / whole


def _random_class_f1_bias(number: float, recall: float, false: float) -> float:
    """Return the same bias if the number of images of the class varies as well, with mean `number` (Poisson)."""
    right, wrong = number * recall, number * (1 - recall) + false
    if number > _FEW:
        return -2 * right * wrong / (2 * right + wrong) ** 3 if right else 0.0
    hits, errors = (np.arange(int(mean + 10 * np.sqrt(mean)) + 11) for mean in (right, wrong))
    weight = _poisson(hits, right)[:, None] * _poisson(errors, wrong)
    images = 2 * hits[:, None] + errors
    ratio = np.divide(2.0 * hits[:, None], images, out=np.zeros(images.shape), where=images > 0)
    return float((weight * ratio).sum() / weight[images > 0].sum()) - 2 * right / (2 * right + wrong)


def _binomial(number: int, share: float) -> Floats:
    """Return the probability of 0 to `number` hits; scipy.stats has it too, but its import takes a second."""
    hits = np.arange(number + 1)
    ways = np.array([math.comb(number, each) for each in range(number + 1)], np.float64)
    return np.asarray(ways * share**hits * (1 - share) ** (number - hits))


def _poisson(counts: NDArray[np.int64], mean: float) -> Floats:
    """Return the probability of each count; counts: 0, 1, 2, ..."""
    if mean <= 0:
        return np.where(counts == 0, 1.0, 0.0)
    factorials = np.cumsum(np.log(np.maximum(counts, 1)))
    return np.asarray(np.exp(counts * math.log(mean) - mean - factorials))
