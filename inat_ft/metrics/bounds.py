"""Confidence bounds for the mean of bounded values, valid for few images and rare events.

The bounds are Gaffke's (2005; Phan, Thomas and Learned-Miller 2021, arXiv 2106.03163): the values, and one more value at the
least favorable end of the range, get random weights from a flat Dirichlet distribution. For values of 0 and 1 they are
Clopper and Pearson's. For paired differences of -1, 0 and 1 the bound excludes 0 exactly when McNemar's exact test rejects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inat_ft.metrics.predictions import Floats

_DIGITS = 12
"""Decimals; smaller differences are rounding errors."""


@dataclass(frozen=True)
class Contributions:
    """The contribution of each image to a metric; their mean is the metric.

    values: `[N]`. least, most: range of a contribution. bias: estimated bias of the mean as an estimate of the metric of the
    population. Intervals and tests are valid both with the bias removed and without.
    """

    values: Floats
    least: float
    most: float
    bias: float = 0.0

    @property
    def value(self) -> float:
        """The metric."""
        return round(float(self.values.mean()), _DIGITS)

    def __sub__(self, other: Contributions) -> Contributions:
        """Return the difference of two classifiers on the same images."""
        least, most = self.least - other.most, self.most - other.least
        return Contributions(self.values - other.values, least, most, self.bias - other.bias)

    @cached_property
    def is_exact(self) -> bool:
        """Whether all are differences of correct (1) and wrong (0), so that McNemar's exact test applies."""
        limits = np.abs([self.least + 1, self.most - 1]).max()
        return bool(limits < 1e-9 and not set(self._groups[0].tolist()) - {-1.0, 0.0, 1.0})

    @property
    def varies(self) -> bool:
        """Whether the contributions differ at all."""
        return len(self._groups[0]) > 1

    @property
    def p(self) -> float:
        """Two-sided p-value of the hypothesis that the metric is 0."""
        below, above = self._p_below(max(0.0, self.bias)), self._p_above(min(0.0, self.bias))
        return min(1.0, 2 * min(below, above))

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Return the two-sided interval of level 1 - alpha; it excludes 0 exactly when p is below alpha."""
        low, high = self._bound(alpha / 2), -self._mirrored._bound(alpha / 2)
        return low - max(0.0, self.bias), high - min(0.0, self.bias)

    def within(self, margin: float, alpha: float = 0.05) -> bool:
        """Return whether the metric is between -margin and margin by two one-sided tests (TOST, Schuirmann 1987)."""
        below, above = self._p_below(max(0.0, self.bias) - margin), self._p_above(min(0.0, self.bias) + margin)
        return max(below, above) < alpha

    @cached_property
    def _groups(self) -> tuple[Floats, Floats]:
        """Distinct values and how many images have each."""
        values, counts = np.unique(np.round(self.values, _DIGITS) + 0.0, return_counts=True)
        return values, counts.astype(np.float64)

    @property
    def _end(self) -> float:
        """The lower end of the range."""
        return min(round(self.least, _DIGITS), float(self._groups[0][0]))

    @cached_property
    def _mirrored(self) -> Contributions:
        return Contributions(-self.values, -self.most, -self.least)

    @cached_property
    def _correction(self) -> float:
        """The exact probability at 0 as a multiple of the approximate one."""
        from scipy.stats import binom

        if not self.is_exact:
            return 1.0
        values, counts = self._groups
        gained, lost = counts[values == 1].sum(), counts[values == -1].sum()
        approximate = self._probability(0.0)
        return float(binom.sf(gained - 1, gained + lost, 0.5)) / approximate if approximate > 0 else 1.0

    def _p_below(self, limit: float) -> float:
        """Return the one-sided p-value of the hypothesis that the metric is at most `limit`."""
        return min(1.0, self._correction * self._probability(limit))

    def _p_above(self, limit: float) -> float:
        return self._mirrored._p_below(-limit)

    def _probability(self, limit: float) -> float:
        """Return the probability that the weighted mean, with one more image at the lower end, is at most `limit`."""
        values, counts = self._groups
        return probability_below_zero(np.append(values, self._end) - limit, np.append(counts, 1.0))

    def _bound(self, alpha: float) -> float:
        """Return the one-sided lower bound of level 1 - alpha."""
        from scipy.optimize import brentq

        low, mean = self._end, float(self.values.mean())
        high = mean - 1e-9 * (self.most - low)
        if high <= low or self._p_below(high) <= alpha:
            return max(low, high)
        if low < 0 < high:  # the test at 0 decides the sign
            low, high = (low, 0.0) if self._p_below(0.0) > alpha else (0.0, high)
        return float(brentq(lambda limit: self._p_below(limit) - alpha, low, high, xtol=1e-7 * (high - low)))


def average(members: Sequence[Contributions]) -> Contributions:
    """Return the mean of several classifiers on the same images."""
    ends = np.mean([[member.least, member.most, member.bias] for member in members], axis=0)
    return Contributions(np.mean([member.values for member in members], axis=0), *ends.tolist())


def probability_below_zero(values: Floats, counts: Floats) -> float:
    """Return the probability that a sum of independent gamma variables, of shapes `counts` and scales `values`, is at most 0.

    Uses the saddlepoint approximation (Lugannani and Rice 1980, in Barndorff-Nielsen's form).
    """
    from scipy.special import ndtr

    least, most = float(values.min()), float(values.max())
    if least >= 0:
        return 0.0
    if most <= 0:
        return 1.0
    s = _saddlepoint(values, counts, 1 / least, 1 / most)
    ratio = 1 - values * s
    root = np.sign(s) * np.sqrt(max(0.0, 2 * float((counts * np.log(ratio)).sum())))
    if abs(root) < 1e-5:
        return 0.5
    slope = s * np.sqrt((counts * (values / ratio) ** 2).sum())
    return float(ndtr(root + np.log(slope / root) / root))


def _saddlepoint(values: Floats, counts: Floats, low: float, high: float) -> float:
    """Return the zero of the derivative of the cumulant generating function, by Newton's method within a bracket."""
    s, width = 0.0, high - low
    for _ in range(200):
        part = values / (1 - values * s)
        slope = float((counts * part).sum())
        low, high = (low, s) if slope > 0 else (s, high)
        step = s - slope / float((counts * part**2).sum())
        step = step if low < step < high else (low + high) / 2
        if abs(step - s) < 1e-13 * width:
            return step
        s = step
    return s
