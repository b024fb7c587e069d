"""Tests and intervals for the difference of two classifiers on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inat_ft.metrics.bounds import Contributions, average
from inat_ft.metrics.predictions import Floats
from inat_ft.metrics.proportions import wilson

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """Metric of one classifier minus that of another, with a 95 % interval."""

    value: float
    low: float
    high: float
    method: str

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class TestResult:
    """A difference between two classifiers on the same images.

    p: two-sided; None when all images give the same difference, so that its error cannot be estimated. equivalent: whether
    the difference lies within a margin, by two one-sided tests at 5 % (TOST, Schuirmann 1987); None without a margin.
    """

    difference: Difference
    p: float | None
    equivalent: bool | None = None


@dataclass(frozen=True)
class Sample:
    """One configuration on the test images: the contribution of each image to the metric, for each training run."""

    members: Sequence[Contributions]

    @property
    def values(self) -> Floats:
        """The metric of each training run, `[S]`."""
        return np.array([member.value for member in self.members])


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Return the images that only the first gets right, those that only the second gets right, and McNemar's exact p.

    first, second: whether each image is correct, `[N]`. p is two-sided (McNemar 1947), and 1 without a discordant image.
    """
    from scipy.stats import binomtest

    n_first_only, n_second_only = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = n_first_only + n_second_only
    p = float(binomtest(n_first_only, discordant).pvalue) if discordant else 1.0
    return n_first_only, n_second_only, p


def compare_samples(first: Sample, second: Sample, margin: float | None = None, alpha: float = ALPHA) -> TestResult:
    """Test first minus second on the same images: one training run each, or at least two each.

    alpha: 1 minus the level of the interval.
    """
    if len(first.members) > 1 or len(second.members) > 1:
        return seed_variance_test([first, second], margin, alpha)
    return paired(first.members[0] - second.members[0], margin, alpha)


def paired(contributions: Contributions, margin: float | None = None, alpha: float = ALPHA) -> TestResult:
    """Test the difference of two training runs, given the contribution of each image to it.

    For accuracy p is that of McNemar's exact test. The interval excludes 0 exactly when p is below alpha.
    """
    difference = Difference(contributions.value, *contributions.interval(alpha), "Gaffke")
    if not (contributions.varies or contributions.is_exact):
        return TestResult(difference, None, None if margin is None else False)
    return TestResult(difference, contributions.p, None if margin is None else contributions.within(margin))


def seed_variance_test(sides: Sequence[Sample], margin: float | None = None, alpha: float = ALPHA) -> TestResult:
    """Test the mean over the seeds of one configuration, or the difference of two such means.

    sides: one or two configurations with at least two training runs each. Results vary with the seed as well as with the
    images (Bouthillier et al. 2021, arXiv 2103.03098). The variance of each side over its seeds and that of the images each
    count with Student's quantile for their own degrees of freedom (Banerjee 1960). This holds the level with two seeds and
    unequal variances, where Welch's test with Satterthwaite's degrees of freedom rejects in up to 13 %. Few images are not
    normally distributed, so the result is never more certain than that of the images alone.
    """
    images = average(sides[0].members)
    images = images - average(sides[1].members) if len(sides) > 1 else images
    number = len(images.values)
    parts = [(float(side.values.var(ddof=1)) / len(side.members), len(side.members) - 1) for side in sides]
    parts.append((float(images.values.var()) / max(1, number - 1), max(1, number - 1)))
    low, high = images.interval(alpha)
    half, value = _half_width(parts, alpha), images.value
    difference = Difference(
        value, min(low, value - half), max(high, value + half), "seeds by side and images (Banerjee)"
    )
    if half < 1e-9:
        return TestResult(difference, None, None if margin is None else False)
    equivalent = (
        None if margin is None else images.within(margin) and abs(value) + _half_width(parts, 2 * ALPHA) < margin
    )
    return TestResult(difference, max(images.p, _p_value(value, parts)), equivalent)


def _half_width(parts: Sequence[tuple[float, int]], alpha: float) -> float:
    """Return half the width of the interval of level 1 - alpha; parts: independent variances with degrees of freedom."""
    from scipy.stats import t as student

    return float(np.sqrt(sum(part * float(student.isf(alpha / 2, freedom)) ** 2 for part, freedom in parts)))


def _p_value(value: float, parts: Sequence[tuple[float, int]]) -> float:
    """Return the alpha at which the interval ends at 0."""
    from scipy.optimize import brentq

    least = -100.0
    if abs(value) <= _half_width(parts, 1.0) or abs(value) < 1e-12:
        return 1.0
    if abs(value) >= _half_width(parts, 10**least):
        return float(10**least)
    return float(10 ** brentq(lambda power: _half_width(parts, 10**power) - abs(value), least, 0.0, xtol=1e-9))


def unpaired_difference(first: float, first_n: int, second: float, second_n: int, alpha: float = ALPHA) -> Difference:
    """Return the difference of two proportions on different or unknown images (Newcombe 1998, method 10)."""
    a, b = wilson(round(first * first_n), first_n, alpha), wilson(round(second * second_n), second_n, alpha)
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    value = first - second
    low = value - float(np.hypot(first - a.low, b.high - second))
    high = value + float(np.hypot(a.high - first, second - b.low))
    return Difference(value, low, high, "unpaired (Newcombe)")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for several tests (Holm 1979), in the given order."""
    order, number = np.argsort(p_values), len(p_values)
    scaled = [min(1.0, (number - rank) * p_values[place]) for rank, place in enumerate(order)]
    corrected = np.empty(number)
    corrected[order] = np.maximum.accumulate(scaled) if scaled else []
    return corrected.tolist()


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Return the level at which Holm's procedure tests each hypothesis, in the given order.

    A corrected p is below ALPHA exactly when the p itself is below its level, so intervals of these levels agree with the
    corrected tests.
    """
    levels, level, stopped = np.empty(len(p_values)), ALPHA, False
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        level = level if stopped else ALPHA / (len(p_values) - rank)
        stopped = stopped or p_values[place] >= level
        levels[place] = level
    return levels.tolist()
