"""Is the difference real? Tests and intervals for two or more classifiers on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.metrics import METRICS, Floats, draws, interval, once
from inat_ft.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Difference:
    """Metric of one classifier minus that of another, with a 95 % interval."""

    value: float
    low: float
    high: float
    method: str


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Images on which only the first is right, only the second, and the exact two-sided p (McNemar 1947).

    first, second: which images each had right, `[N]`. Without a discordant image p is 1.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return only_first, only_second, p


def paired_difference(first: Predictions, second: Predictions, metric: str, seed: int = 0) -> tuple[Difference, Floats]:
    """first minus second on the same images in the same order, by a paired bootstrap stratified by class.

    Also returns the differences on the bootstrap samples, `[B]`.
    """
    measure = METRICS[metric]
    drawn = np.concatenate([measure(first, block) - measure(second, block) for block in draws(first.true, seed)])
    low, high = interval(drawn)
    value = float(measure(first, once(first))[0] - measure(second, once(second))[0])
    return Difference(value, low, high, "paired bootstrap"), drawn


def unpaired_difference(first: float, first_n: int, second: float, second_n: int) -> Difference:
    """Difference of two shares measured on different or unknown images (Newcombe 1998, method 10)."""
    from inat_ft.evaluation.metrics import wilson

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


def equivalent(drawn: Floats, margin: float) -> bool:
    """Whether two one-sided tests at 5 % put the difference within +-margin (TOST, Schuirmann 1987).

    drawn: differences on bootstrap samples, `[B]`.
    """
    low, high = np.quantile(drawn, [0.05, 0.95])
    return bool(-margin < low and high < margin)


def seeds_difference(
    first: Sequence[Predictions], second: Sequence[Predictions], metric: str, seed: int = 0
) -> tuple[Difference, Floats]:
    """Mean metric of several trainings minus that of several others, all on the same images in the same order.

    The bootstrap draws trainings as well as images, so that luck with the seed counts as what it is (a two-level
    bootstrap; Bouthillier et al. 2021, arXiv 2103.03098). Also returns the differences on the samples, `[B]`.
    """
    measure = METRICS[metric]
    blocks = draws(first[0].true, seed)
    scores = [[np.concatenate([measure(p, block) for block in blocks]) for p in side] for side in (first, second)]
    rng = np.random.default_rng(seed + 1)
    means = []
    for side in scores:
        table = np.stack(side)
        chosen = rng.integers(0, len(table), (table.shape[1], len(table)))
        means.append(table[chosen, np.arange(table.shape[1])[:, None]].mean(1))
    drawn = means[0] - means[1]
    low, high = interval(drawn)
    plain = [float(np.mean([measure(p, once(p))[0] for p in side])) for side in (first, second)]
    return Difference(plain[0] - plain[1], low, high, "bootstrap over seeds and images"), drawn
