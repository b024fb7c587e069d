"""Confidence bounds for the mean of bounded values, valid for few images and rare events, and tests of differences.

The bounds are Gaffke's (2005; Phan, Thomas and Learned-Miller 2021, arXiv 2106.03163): the values, and one more value at the
least favorable end of the range, get random weights from a flat Dirichlet distribution. For values of 0 and 1 they are
Clopper and Pearson's. For paired differences of -1, 0 and 1 the bound excludes 0 exactly when McNemar's exact test rejects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inat_ft.metrics.roots import find_root

Floats = NDArray[np.float64]
ALPHA = 0.05
_DIGITS = 12  # decimals; smaller differences are rounding errors


@dataclass(frozen=True)
class Contributions:
    """The contribution of each image to a metric; their mean is the metric.

    values: `[N]`. least, most: range of a contribution. bias: estimated bias of the mean as an estimate of the metric of the
    population. Intervals and tests are valid both with the bias removed and without. member: int64 `[N]`, the number of the
    group of each image, such as its sequence or site; None if images are independent.
    """

    values: Floats
    least: float
    most: float
    bias: float = 0.0
    member: NDArray[np.int64] | None = None

    @property
    def value(self) -> float:
        return round(float(self.values.mean()), _DIGITS)

    def __sub__(self, other: Contributions) -> Contributions:
        """Return the difference of two classifiers on the same images."""
        least, most = self.least - other.most, self.most - other.least
        return Contributions(self.values - other.values, least, most, self.bias - other.bias, self.member)

    @property
    def variance(self) -> tuple[float, float]:
        """Variance of the mean, and its degrees of freedom.

        Groups of images count as clusters; their effective number (Kish 1965) is smaller if their sizes differ.
        """
        member = np.arange(len(self.values)) if self.member is None else self.member
        sizes, sums = (np.bincount(member, weights) for weights in (None, self.values - self.values.mean()))
        ratio = len(sizes) / max(1, len(sizes) - 1)
        effective = len(member) ** 2 / float((sizes**2).sum())
        return float((sums**2).sum()) / len(member) ** 2 * ratio, max(1.0, effective - 1)

    @cached_property
    def is_exact(self) -> bool:
        """Whether all are differences of correct (1) and wrong (0), so that McNemar's exact test applies."""
        limits = max(abs(self.least + 1), abs(self.most - 1))
        return limits < 1e-9 and set(self._groups[0].tolist()) <= {-1.0, 0.0, 1.0}

    @property
    def varies(self) -> bool:
        return len(self._groups[0]) > 1

    @property
    def p(self) -> float:
        """Two-sided p-value of the hypothesis that the metric is 0."""
        return min(1.0, 2 * min(self._tails(0.0)))

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the two-sided interval of level 1 - alpha; it excludes 0 exactly when p is below alpha."""
        low, high = self._bound(alpha / 2), -self._mirrored._bound(alpha / 2)
        return low - max(0.0, self.bias), high - min(0.0, self.bias)

    def within(self, margin: float) -> bool:
        """Return whether the metric is between -margin and margin by two one-sided tests (TOST, Schuirmann 1987)."""
        return max(self._tails(margin)) < ALPHA

    @cached_property
    def _groups(self) -> tuple[Floats, Floats]:
        """Distinct values and how many images have each."""
        values, counts = np.unique(np.round(self.values, _DIGITS) + 0.0, return_counts=True)
        return values, counts.astype(np.float64)

    @property
    def _end(self) -> float:
        return min(round(self.least, _DIGITS), float(self._groups[0][0]))

    @cached_property
    def _mirrored(self) -> Contributions:
        return Contributions(-self.values, -self.most, -self.least)

    @cached_property
    def _correction(self) -> float:
        """The exact probability at 0 as a multiple of the approximate one."""
        if not self.is_exact:
            return 1.0
        from scipy.stats import binom

        values, counts = self._groups
        gained, lost = counts[values == 1].sum(), counts[values == -1].sum()
        approximate = self._probability(0.0)
        return float(binom.sf(gained - 1, gained + lost, 0.5)) / approximate if approximate > 0 else 1.0

    def _tails(self, margin: float) -> tuple[float, float]:
        above = self._mirrored._p_below(-min(0.0, self.bias) - margin)
        return self._p_below(max(0.0, self.bias) - margin), above

    def _p_below(self, limit: float) -> float:
        return min(1.0, self._correction * self._probability(limit))

    def _probability(self, limit: float) -> float:
        """Return the probability that the weighted mean, with one more image at the lower end, is at most `limit`."""
        values, counts = self._groups
        return _probability_below_zero(np.append(values, self._end) - limit, np.append(counts, 1.0))

    def _bound(self, alpha: float) -> float:
        low, mean = self._end, float(self.values.mean())
        high = mean - 1e-9 * (self.most - low)
        if high <= low or self._p_below(high) <= alpha:
            return max(low, high)
        if low < 0 < high:  # the test at 0 decides the sign
            low, high = (low, 0.0) if self._p_below(0.0) > alpha else (0.0, high)
        return find_root(lambda limit: self._p_below(limit) - alpha, low, high, 1e-7 * (high - low))


def average(runs: Sequence[Contributions]) -> Contributions:
    """Return the mean of several classifiers on the same images."""
    least, most, bias = np.mean([[run.least, run.most, run.bias] for run in runs], axis=0).tolist()
    return Contributions(np.mean([run.values for run in runs], axis=0), least, most, bias, runs[0].member)


def _probability_below_zero(values: Floats, counts: Floats) -> float:
    """Return the probability that a sum of independent gamma variables, of shapes `counts` and scales `values`, is at most 0.

    Uses the saddlepoint approximation (Lugannani and Rice 1980, in Barndorff-Nielsen's form).
    """
    least, most = float(values.min()), float(values.max())
    if least >= 0:
        return 0.0
    if most <= 0:
        return 1.0
    # The saddlepoint is the zero of the derivative of the cumulant generating function.
    low, high = (1 - 1e-13) / least, (1 - 1e-13) / most
    s = find_root(lambda s: (counts * values / (1 - values * s)).sum(), low, high, 1e-17 * (high - low))
    ratio = 1 - values * s
    root = np.sign(s) * np.sqrt(max(0.0, 2 * float((counts * np.log(ratio)).sum())))
    if abs(root) < 1e-5:
        return 0.5
    slope = s * np.sqrt((counts * (values / ratio) ** 2).sum())
    return 0.5 * math.erfc(-(root + np.log(slope / root) / root) / math.sqrt(2))


Runs = Sequence[Contributions]
"""One configuration on the test images: the contribution of each image to the metric, for each training run."""


class Method(StrEnum):
    """How a difference is tested. The value is the `method` in `compare --json`."""

    IMAGES = "Gaffke"
    GROUPS = "groups of images (Student)"
    SEEDS = "seeds by side and images (Banerjee)"
    SEEDS_AND_GROUPS = "seeds by side and groups of images (Banerjee)"
    UNPAIRED = "unpaired (Newcombe)"


@dataclass(frozen=True)
class Difference:
    """Metric of one classifier minus that of another, with a 95% interval. method: a `Method`, or that of a plugin."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class TestResult:
    """A difference between two classifiers on the same images.

    p: two-sided; None when all images give the same difference, so that its error cannot be estimated. equivalent: whether
    the difference lies within a margin, by two one-sided tests at 5% (TOST, Schuirmann 1987); None without a margin.
    """

    difference: Difference
    p: float | None
    equivalent: bool | None = None


def paired(contributions: Contributions, margin: float | None = None, alpha: float = ALPHA) -> TestResult:
    """Test the difference of two training runs, given the contribution of each image to it.

    For accuracy p is that of McNemar's exact test. The interval excludes 0 exactly when p is below alpha. With groups of
    images, the variance is that of the groups.
    """
    if contributions.member is not None:
        return _by_variance(contributions, [], Method.GROUPS, margin, alpha)
    difference = Difference(contributions.value, *contributions.interval(alpha), Method.IMAGES)
    if not (contributions.varies or contributions.is_exact):
        return TestResult(difference, None, None if margin is None else False)
    return TestResult(difference, contributions.p, None if margin is None else contributions.within(margin))


def seed_variance_test(sides: Sequence[Runs], margin: float | None = None, alpha: float = ALPHA) -> TestResult:
    """Test the mean over the seeds of one configuration, or the difference of two such means.

    sides: one or two configurations with at least two training runs each. Results vary with the seed as well as with the
    images (Bouthillier et al. 2021, arXiv 2103.03098). The variance of each side over its seeds and that of the images each
    count with Student's quantile for their own degrees of freedom (Banerjee 1960). This holds the level with two seeds and
    unequal variances, where Welch's test with Satterthwaite's degrees of freedom rejects in up to 13%. Few images are not
    normally distributed, so the result is never more certain than that of the images alone.
    """
    images = average(sides[0]) if len(sides) == 1 else average(sides[0]) - average(sides[1])
    parts = [(float(np.var([run.value for run in side], ddof=1)) / len(side), len(side) - 1.0) for side in sides]
    method = Method.SEEDS if images.member is None else Method.SEEDS_AND_GROUPS
    return _by_variance(images, parts, method, margin, alpha)


def _by_variance(
    images: Contributions, parts: Sequence[tuple[float, float]], method: Method, margin: float | None, alpha: float
) -> TestResult:
    """Test a mean whose variance is that of the images, by group, and other parts; never more certain than for images."""
    parts = [*parts, images.variance]
    low, high = images.interval(alpha)
    half, value = _half_width(parts, alpha), images.value
    difference = Difference(value, min(low, value - half), max(high, value + half), method)
    if half < 1e-9 and not (images.is_exact and value == 0 and len(parts) == 1):
        return TestResult(difference, None, None if margin is None else False)
    equivalent = None
    if margin is not None:
        equivalent = images.within(margin) and abs(value) + _half_width(parts, 2 * ALPHA) < margin
    return TestResult(difference, max(images.p, _p_value(value, parts)), equivalent)


def _half_width(parts: Sequence[tuple[float, float]], alpha: float) -> float:
    """Return half the width of the interval of level 1 - alpha; parts: independent variances with degrees of freedom."""
    from scipy.stats import t as student

    return float(np.sqrt(sum(part * float(student.isf(alpha / 2, freedom)) ** 2 for part, freedom in parts)))


def _p_value(value: float, parts: Sequence[tuple[float, float]]) -> float:
    """Return the alpha at which the interval ends at 0, at least 1e-100."""
    from scipy.optimize import brentq

    if abs(value) <= _half_width(parts, 1.0) or abs(value) < 1e-12:
        return 1.0
    if abs(value) >= _half_width(parts, 1e-100):
        return 1e-100
    return float(10 ** brentq(lambda power: _half_width(parts, 10**power) - abs(value), -100.0, 0.0, xtol=1e-9))


def unpaired_difference(first: float, first_n: int, second: float, second_n: int, alpha: float = ALPHA) -> Difference:
    """Return the difference of two proportions on different or unknown images (Newcombe 1998, method 10)."""
    from scipy.stats import binomtest

    a, b = (
        binomtest(round(share * number), number).proportion_ci(1 - alpha, method="wilson")
        for share, number in ((first, first_n), (second, second_n))
    )
    value = first - second
    low = value - float(np.hypot(first - a.low, b.high - second))
    high = value + float(np.hypot(a.high - first, second - b.low))
    return Difference(value, low, high, Method.UNPAIRED)


def holm(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return p-values corrected for several tests (Holm 1979), and the level at which each one is tested, in the given order.

    A corrected p is below ALPHA exactly when the p itself is below its level, so intervals of these levels agree with the
    corrected tests.
    """
    order = np.argsort(p_values, kind="stable")
    p, remaining = np.asarray(p_values, float)[order], np.arange(len(order), 0, -1)
    passed = np.minimum.accumulate(p < ALPHA / remaining)
    corrected, levels = np.empty(len(p)), np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, remaining * p))
    levels[order] = ALPHA / np.maximum(1, np.where(passed, remaining, len(p) - passed.sum()))
    return corrected.tolist(), levels.tolist()
