"""Conformal prediction sets: sets of classes that contain the true class with a chosen probability.

The score is that of RAPS (Angelopoulos et al. 2021, arXiv 2009.14193) without its random part: the sum of the probabilities
of all classes that are more probable, plus a penalty for each rank after the fifth. The most probable class has the score 0,
so it is in every set. Calibration and prediction use the same score, so the coverage needs no random numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from inat_ft.metrics.bounds import Floats

_FREE_RANKS = 5
_PENALTY = 0.01
_ROUNDING = 1e-6  # relative
_DIGITS = 9  # decimals, so that 0.9 * 10 is not above 9


def conformity(p: Floats) -> Floats:
    """Return 1 minus the score of each class, `[N, C]`, for probabilities `[N, C]`.

    It is summed from the least probable class, because sums near 1 lose the small probabilities of a confident network.
    """
    order = np.argsort(-p, axis=1, kind="stable")
    values = np.take_along_axis(p, order, 1)[:, ::-1].cumsum(1)[:, ::-1]
    values[:, 0] = 1.0
    values -= _PENALTY * np.maximum(np.arange(p.shape[1]) - _FREE_RANKS + 1, 0)
    found = np.empty_like(values)
    np.put_along_axis(found, order, values, 1)
    return found


def fewest_images(coverage: float) -> int:
    """Return the smallest number of calibration images for which sets need not contain all classes."""
    return math.ceil(round(coverage / (1 - coverage), _DIGITS))


def threshold(values: Floats, coverage: float) -> float:
    """Return the conformity that a class needs to be in a set, from those of the true classes of n calibration images.

    At least ceil((n + 1) * coverage) of them, and at least one, reach it; -inf if that is more than n.
    """
    reaching = max(math.ceil(round((len(values) + 1) * coverage, _DIGITS)), 1)
    excluded = len(values) + 1 - reaching
    return float(np.sort(values)[excluded - 1]) if excluded else -math.inf


def fit_thresholds(p: Floats, true: NDArray[np.int64], coverage: float, by_class: bool = False) -> Floats:
    """Return the threshold of each class, `[C]`, from probabilities `[N, C]` and labels `[N]`.

    by_class: each class is calibrated with its own images, so that the coverage holds within each class.
    """
    values, classes = conformity(p)[np.arange(len(true)), true], p.shape[1]
    if by_class:
        return np.array([threshold(values[true == label], coverage) for label in range(classes)])
    return np.full(classes, threshold(values, coverage))


def in_set(p: Floats, thresholds: Floats) -> NDArray[np.bool_]:
    """Return whether each class is in the set of each image, `[N, C]`.

    A class at the threshold is in the set, also if rounding has changed its last digits: the calibration reads probabilities
    with nine digits from a CSV file.
    """
    return np.asarray(conformity(p) >= thresholds - _ROUNDING * np.abs(thresholds))
