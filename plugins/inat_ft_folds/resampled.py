"""The corrected resampled t-test of Nadeau and Bengio (2003) on the scores of folds.

The training sets of a cross-validation overlap, so the scores of its folds are correlated, and the usual t-test rejects too
often. The corrected test takes the share of held-out images as their correlation: it adds the ratio of held-out to training
images to the 1/J in the variance of the mean over J folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from inat_ft.metrics.bounds import ALPHA


@dataclass(frozen=True)
class Resampled:
    """The mean over the folds with its standard error. error is 0 if all folds have the same value."""

    mean: float
    error: float
    freedom: int

    @property
    def varies(self) -> bool:
        """Whether the folds differ, so that there is a test."""
        return self.error > 1e-12

    @property
    def p(self) -> float | None:
        """Two-sided p-value of the hypothesis that the mean is 0; None if the folds do not differ."""
        from scipy.stats import t

        return float(2 * t.sf(abs(self.mean) / self.error, self.freedom)) if self.varies else None

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the two-sided interval of level 1 - alpha."""
        from scipy.stats import t

        half = float(t.isf(alpha / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    def within(self, margin: float) -> bool:
        """Return whether the mean is between -margin and margin by two one-sided tests (TOST, Schuirmann 1987)."""
        return self.varies and -margin < self.interval(2 * ALPHA)[0] and self.interval(2 * ALPHA)[1] < margin


def resampled(values: Sequence[float], ratio: float) -> Resampled:
    """Return the mean of at least two values with its corrected error.

    ratio: number of held-out images over that of training images; 0 gives the usual t-test.
    """
    count, variance = len(values), float(np.var(values, ddof=1))
    return Resampled(float(np.mean(values)), sqrt((1 / count + ratio) * variance), count - 1)
