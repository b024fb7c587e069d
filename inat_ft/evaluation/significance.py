"""Is the difference real? Tests and intervals for two or more classifiers on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.metrics import METRICS, Draws, Floats, interval, once, wilson
from inat_ft.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Difference:
    """Metric of one classifier minus that of another, with a 95 % interval."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Finding:
    """A difference between two classifiers on the same images.

    p: two-sided; same: whether it lies within the margin asked for, by two one-sided tests at 5 % (TOST, Schuirmann
    1987); None without a margin.
    """

    difference: Difference
    p: float
    same: bool | None = None


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Images on which only the first is right, only the second, and the exact two-sided p (McNemar 1947).

    first, second: which images each had right, `[N]`. Without a discordant image p is 1.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return only_first, only_second, p


def paired(value: float, drawn: Floats, margin: float | None) -> Finding:
    """From a difference and what it is on bootstrap samples that both classifiers share, `[B]`.

    The interval is that of the percentiles; p is the normal one of the difference by its bootstrap error, since
    counting samples could not tell p below 1 in 2,000, which correction for several tests needs.
    """
    from scipy.stats import norm

    low, high = interval(drawn)
    error = float(drawn.std(ddof=1))
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else float(value == 0)
    same = None
    if margin is not None:
        least, most = np.quantile(drawn, [0.05, 0.95])
        same = bool(-margin < least and most < margin)
    return Finding(Difference(value, low, high, "paired bootstrap"), p, same)


def paired_difference(first: Predictions, second: Predictions, metric: str) -> Finding:
    """first minus second on the same images in the same order."""
    samples, measure = Draws(first.true), METRICS[metric]
    value = float(measure(first, once(first))[0] - measure(second, once(second))[0])
    return paired(value, samples.of(measure, first) - samples.of(measure, second), None)


def over_seeds(sides: Sequence[Floats], drawn: Floats, margin: float | None = None) -> Finding:
    """The mean over the seeds of one configuration, or the difference of two such means.

    sides: the metric of each training, `[S]` for each side, one side with two seeds at least; drawn: the mean or
    difference on bootstrap samples of the images, `[B]`. Trainings differ by luck as images do (Bouthillier et al. 2021,
    arXiv 2103.03098), so both variances count: that of a seed, taken as equal on both sides and estimated from all of
    them, and that of the images. The quantiles are Student's with Satterthwaite's degrees of freedom.
    """
    from scipy.stats import t as student

    value = float(sides[0].mean()) - (float(sides[1].mean()) if len(sides) > 1 else 0.0)
    freedom = sum(len(side) - 1 for side in sides)
    seed_variance = sum(float(((side - side.mean()) ** 2).sum()) for side in sides) / freedom
    of_seeds = seed_variance * sum(1 / len(side) for side in sides)
    variance = of_seeds + float(drawn.var(ddof=1))
    error = float(np.sqrt(variance))
    degrees = freedom * (variance / of_seeds) ** 2 if of_seeds > 0 else np.inf
    half = float(student.ppf(0.975, degrees)) * error
    p = float(2 * student.sf(abs(value) / error, degrees)) if error > 0 else float(value == 0)
    same = None if margin is None else abs(value) + float(student.ppf(0.95, degrees)) * error < margin
    return Finding(Difference(value, value - half, value + half, "Student over seeds, bootstrap over images"), p, same)


def unpaired_difference(first: float, first_n: int, second: float, second_n: int) -> Difference:
    """Difference of two shares measured on different or unknown images (Newcombe 1998, method 10)."""
    a, b = wilson(round(first * first_n), first_n), wilson(round(second * second_n), second_n)
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    value = first - second
    low = value - float(np.hypot(first - a.low, b.high - second))
    high = value + float(np.hypot(a.high - first, second - b.low))
    return Difference(value, low, high, "unpaired (Newcombe)")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several tests (Holm 1979), in the order given."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected.tolist()
