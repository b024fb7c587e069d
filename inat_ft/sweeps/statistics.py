"""Statistics of each parameter of a sweep: importance with its interval, correlation, mean by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.sweeps.attempts import Trial

Floats = NDArray[np.float64]
_SAMPLES = 500
_BINS = 4
_FEW = 5


@dataclass(frozen=True)
class Importance:
    """Fraction of the metric's variance that one parameter explains by itself, 0 to 1."""

    name: str
    share: float
    low: float
    high: float
    """95 % interval: bootstrap over the trials."""
    null_quantile: float
    """95 % quantile of `share` for a parameter without effect: permutation of the values."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of a parameter (or of one of its values, 0 or 1) with the metric."""

    name: str
    r: float
    low: float
    high: float
    """95 % interval (Fisher 1915)."""


@dataclass(frozen=True)
class Level:
    """The trials with one value of a parameter."""

    name: str
    value: str
    number: int
    mean: float
    best: float


@dataclass(frozen=True)
class Column:
    """One parameter over the trials that it applies to."""

    name: str
    values: list[Any]
    y: Floats
    """The metric of these trials."""


def columns(trials: Sequence[Trial]) -> list[Column]:
    """Return each parameter that differs among the trials that have it."""
    found = []
    for name in dict.fromkeys(name for trial in trials for name in trial.params):
        having = [trial for trial in trials if name in trial.params]
        values = [trial.params[name] for trial in having]
        if len({str(value) for value in values}) > 1:
            found.append(Column(name, values, np.array([trial.value for trial in having], float)))
    return found


def is_numeric(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Return whether the values are positive numbers that span a factor of 8, so that their logarithm is used."""
    return is_numeric(values) and min(values) > 0 and max(values) / min(values) >= 8


def bin_values(values: Sequence[Any]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the level of each value, `[N]`, and the names of the levels; continuous values are cut into quarters."""
    distinct = sorted(set(values)) if is_numeric(values) else sorted(set(values), key=str)
    if not is_numeric(values) or len(distinct) <= max(_BINS, len(values) // 3):
        return np.array([distinct.index(value) for value in values]), [f"{value}" for value in distinct]
    edges = np.quantile(np.array(values, float), np.linspace(0, 1, _BINS + 1))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return np.searchsorted(edges[1:-1], np.array(values, float)).astype(np.int64), names


def _eta_squared(level: NDArray[np.int64], y: Floats) -> float:
    """Return the variance between the levels as a fraction of the total (eta squared)."""
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        return 0.0
    counts, sums = np.bincount(level), np.bincount(level, y)
    means = sums / np.maximum(counts, 1)
    return float((counts * (means - y.mean()) ** 2).sum() / total)


def importances(trials: Sequence[Trial]) -> list[Importance]:
    """Return the importance of each parameter, the greatest first. The result is deterministic.

    A parameter that fewer than 5 trials have is skipped.
    """
    found = []
    for column in columns(trials):
        level, y = bin_values(column.values)[0], column.y
        if len(y) < min(_FEW, len(trials)):
            continue
        rng = np.random.default_rng(0)
        rows = rng.integers(0, len(y), (_SAMPLES, len(y)))
        low, high = np.quantile([_eta_squared(level[row], y[row]) for row in rows], [0.025, 0.975])
        null_quantile = np.quantile([_eta_squared(level, rng.permutation(y)) for _ in range(_SAMPLES)], 0.95)
        found.append(Importance(column.name, _eta_squared(level, y), float(low), float(high), float(null_quantile)))
    return sorted(found, key=lambda importance: -importance.share)


def correlations(trials: Sequence[Trial]) -> list[Correlation]:
    """Return the correlation of each numeric parameter, and of each value of the others, with the metric."""
    found = []
    for column in columns(trials):
        name, values, y = column.name, column.values, column.y
        if is_numeric(values):
            x = np.array(values, float)
            label = f"log {name}" if is_logarithmic(values) else name
            found.append(_correlation(label, np.log(x) if is_logarithmic(values) else x, y))
        else:
            level, names = bin_values(values)
            found += [_correlation(f"{name} = {word}", (level == place) * 1.0, y) for place, word in enumerate(names)]
    return found


def _correlation(name: str, x: Floats, y: Floats) -> Correlation:
    if len(y) < 4 or x.std() == 0 or y.std() == 0:
        return Correlation(name, float("nan"), -1.0, 1.0)
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -0.999999, 0.999999))
    low, high = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(len(y) - 3))
    return Correlation(name, r, float(low), float(high))


def means_by_value(trials: Sequence[Trial], maximize: bool) -> list[Level]:
    """Return the mean and the best of the metric for each value of each parameter."""
    found = []
    for column in columns(trials):
        level, names = bin_values(column.values)
        for place, word in enumerate(names):
            chosen = column.y[level == place]
            if len(chosen):
                best = chosen.max() if maximize else chosen.min()
                found.append(Level(column.name, word, len(chosen), float(chosen.mean()), float(best)))
    return found
