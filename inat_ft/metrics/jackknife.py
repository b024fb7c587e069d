"""Contributions of images to any metric, by leaving images out (the jackknife; Efron and Stein 1981)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inat_ft.metrics.bounds import Contributions
from inat_ft.metrics.predictions import Floats, Predictions

_GROUPS = 500
"""Groups that are left out when images differ in more than their classes."""


def jackknife(value: Callable[[Predictions], float], p: Predictions, by_cell: bool) -> Contributions:
    """Return the jackknife pseudo-values of a metric, shifted so that their mean is the metric.

    by_cell: whether images with the same true and predicted class contribute the same, so that one of each is left out;
    otherwise at most 500 random groups of images are left out, and there is one contribution for each group.
    """
    whole, number = float(value(p)), len(p)
    if not np.isfinite(whole):
        raise ValueError(f"value() returned {whole}")
    if number == 1:
        return Contributions(np.array([whole]), *_range(value, p, whole, np.zeros(1), 1))
    if by_cell:
        _, first, member = np.unique(p.true * len(p.classes) + p.predicted, return_index=True, return_inverse=True)
        groups = [np.array([place]) for place in first]
    else:
        groups = np.array_split(np.random.default_rng(0).permutation(number), min(number, _GROUPS))
        member = np.arange(len(groups))
    without = np.array([value(p.take(np.delete(np.arange(number), group))) for group in groups])[member]
    factor = len(without) - 1
    influence = factor * (without.mean() - without)
    least, most = _range(value, p, whole, influence, number / len(without))
    return Contributions(whole + influence, least, most, bias=factor * float(without.mean() - whole))


def _range(
    value: Callable[[Predictions], float], p: Predictions, whole: float, influence: Floats, group_size: float
) -> tuple[float, float]:
    """Return the range of a contribution: of those seen, and of one more correct or wrong image of any class."""
    number = len(p)
    found = [float(influence.min()), float(influence.max())]
    order = np.argsort(-np.bincount(p.predicted, minlength=len(p.classes)), kind="stable")
    for label in np.unique(p.true).tolist():
        wrong = next((int(other) for other in order if other != label), label)
        for predicted in (label, wrong):
            found.append((number + 1) * (float(value(_with_one_more(p, label, predicted))) - whole) / group_size)
    return whole + min(found), whole + max(found)


def _with_one_more(p: Predictions, label: int, predicted: int) -> Predictions:
    """Return the predictions with a copy of the first image of class `label`, predicted as `predicted`."""
    source = int(np.flatnonzero(p.true == label)[0])
    more = p.take(np.append(np.arange(len(p)), source))
    if more.probabilities is not None:
        row = more.probabilities[-1]
        row[[more.predicted[-1], predicted]] = row[[predicted, more.predicted[-1]]]
    more.predicted[-1] = predicted
    return more
