"""What each image contributes to each metric: the metric is their mean, which gives its interval and its tests.

Macro metrics are means of ratios; an image contributes its share of the linearised metric. A class is measured against the
mean of all classes, not against its own, so that a class with a single image does not count as one without variance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.bounds import Contributions, Floats
from inat_ft.evaluation.predictions import Predictions

BINS = 15
_EPS = 1e-15
_FEW = 30
"""Images a class up to which the bias of F1 is summed instead of expanded."""


def accuracy(p: Predictions) -> Contributions:
    """Share of images that are right."""
    return Contributions(p.correct.astype(np.float64), 0.0, 1.0)


def top3_accuracy(p: Predictions) -> Contributions:
    """Share of images whose class is among the three most probable."""
    shares = probabilities(p)
    rank = (shares > shares[np.arange(len(p)), p.true][:, None]).sum(1)
    return Contributions((rank < 3).astype(np.float64), 0.0, 1.0)


def log_loss(p: Predictions) -> Contributions:
    """Mean negative log probability of the true class, in nats.

    As the largest loss counts the largest that occurs, or the mean loss if each image were of another class.
    """
    losses = -np.log(np.clip(probabilities(p), _EPS, 1))
    found = losses[np.arange(len(p)), p.true]
    others = losses.shape[1] - 1
    if_wrong = float((losses.sum(1) - found).mean()) / others if others else 0.0
    return Contributions(found, 0.0, max(float(found.max()), if_wrong))


def brier(p: Predictions) -> Contributions:
    """Mean squared distance of the probabilities from the truth, over all classes; 0 to 2 (Brier 1950)."""
    truth = np.eye(len(p.classes))[p.true]
    return Contributions(((probabilities(p) - truth) ** 2).sum(1), 0.0, 2.0)


def ece(p: Predictions) -> Contributions:
    """Expected calibration error over 15 bins of equally many images (Nixon et al. 2019, arXiv 1904.01685)."""
    gaps = probabilities(p).max(1) - p.correct
    bins = calibration_bins(p)
    sign = np.sign(np.bincount(bins, gaps, BINS))
    return Contributions(sign[bins] * gaps, -1.0, 1.0)


def balanced_accuracy(p: Predictions) -> Contributions:
    """Mean recall of the classes that occur."""
    return _macro(p, True, False, np.bincount(p.true, minlength=len(p.classes)) > 0)


def macro_precision(p: Predictions) -> Contributions:
    """Mean precision of the classes that occur or are predicted; 0 for one that is never predicted."""
    return _macro(p, False, True, _present(p))


def macro_recall(p: Predictions) -> Contributions:
    """Mean recall of the classes that occur or are predicted."""
    return _macro(p, True, False, _present(p))


def macro_f1(p: Predictions) -> Contributions:
    """Mean F1 of the classes that occur or are predicted."""
    return _macro(p, True, True, _present(p))


METRICS: dict[str, Callable[[Predictions], Contributions]] = {
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
SHARES_OF_IMAGES = ("accuracy", "top3_accuracy")
MACRO = ("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")
NEED_PROBABILITIES = ("top3_accuracy", "log_loss", "brier", "ece")
LOWER_IS_BETTER = ("log_loss", "brier", "ece")


def probabilities(p: Predictions) -> Floats:
    """Those of the predictions. Raises ValueError where there are none."""
    if p.probabilities is None:
        raise ValueError("these predictions hold no probabilities")
    return p.probabilities


def calibration_bins(p: Predictions) -> NDArray[np.int64]:
    """The bin of each image, `[N]`: equally many images a bin, by confidence."""
    bins = np.empty(len(p), np.int64)
    order = np.argsort(probabilities(p).max(1), kind="stable")
    bins[order] = np.arange(len(p)) * min(BINS, len(p)) // len(p)
    return bins


def class_counts(p: Predictions) -> tuple[Floats, Floats, Floats]:
    """Right, true and predicted images by class, each `[C]`."""
    labels = (p.true[p.correct], p.true, p.predicted)
    hits, true, predicted = (np.bincount(label, minlength=len(p.classes)).astype(np.float64) for label in labels)
    return hits, true, predicted


def _present(p: Predictions) -> NDArray[np.bool_]:
    return np.bincount(np.concatenate([p.true, p.predicted]), minlength=len(p.classes)) > 0


def _macro(p: Predictions, recall: bool, precision: bool, present: NDArray[np.bool_]) -> Contributions:
    """Mean over `present` classes of recall, of precision, or of F1, which is both: hits over images true or predicted."""
    hits, true, predicted = class_counts(p)
    credit = recall + precision
    images = recall * true + precision * predicted
    ratio = np.divide(credit * hits, images, out=np.zeros_like(hits), where=images > 0)
    value, centre = float(ratio[present].mean()), float(ratio[images > 0].mean())
    share = np.divide(len(p) / present.sum(), images, out=np.zeros_like(hits), where=images > 0)
    charged = recall * share[p.true] + precision * share[p.predicted]
    values = value + credit * p.correct * share[p.true] - centre * charged
    largest = credit * float(share.max())
    bias = _missing_bias(ratio, true if recall else predicted, present)
    if recall and precision:
        bias += _f1_bias(hits, true, predicted, present)
    return Contributions(values, value - largest * centre, value + largest * (1 - centre), bias)


def _missing_bias(ratio: Floats, images: Floats, present: NDArray[np.bool_]) -> float:
    """Bias from classes that count as 0 since by chance none of the few images is theirs."""
    occurring, missing = int((images > 0).sum()), int((present & (images == 0)).sum())
    if not missing:
        return 0.0
    by_chance = occurring / np.expm1(min(images.sum() / occurring, 50.0))
    return -min(missing, float(by_chance)) / int(present.sum()) * float(ratio[images > 0].mean())


def _f1_bias(hits: Floats, true: Floats, predicted: Floats, present: NDArray[np.bool_]) -> float:
    """Bias of macro F1 from few images a class, if all classes have the same recall.

    The worse of two assumptions: false positives as frequent in all classes, or where they were seen.
    """
    occurs = true > 0
    recall, false = hits.sum() / true.sum(), predicted - hits
    alike = np.full(len(true), false.sum() / present.sum())
    sums = []
    for rates in (alike, false):
        distinct, counts = np.unique(np.stack([true[occurs], rates[occurs]]), axis=1, return_counts=True)
        found = [_class_f1_bias(int(number), float(recall), float(rate)) for number, rate in distinct.T]
        sums.append(float(np.dot(found, counts)))
    return min(sums) / int(present.sum())


def _class_f1_bias(number: int, recall: float, false: float) -> float:
    """Expected F1 of a class of `number` images with Poisson false positives, minus F1 of the expected counts."""
    from scipy.stats import binom, poisson

    whole = number * (1 + recall) + false
    if number > _FEW:
        bent = 2 * number * recall * (false - (number + false) * (1 - recall))
        return float(bent / whole**3)
    hits, wrong = np.arange(number + 1)[:, None], np.arange(int(false + 10 * np.sqrt(false)) + 11)
    weight = binom.pmf(hits, number, recall) * poisson.pmf(wrong, false)
    return float((weight * 2 * hits / (number + hits + wrong)).sum()) - 2 * number * recall / whole
