"""Statistics of each parameter of a sweep: importance with its interval, and correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from inat_ft_sweeps.attempts import Trial
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]
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
    """95% interval: bootstrap over the trials."""
    null_quantile: float
    """95% quantile of `share` for a parameter without effect: permutation of the values."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of a parameter (or of one of its values, 0 or 1) with the metric, with its 95% interval (Fisher)."""

    name: str
    r: float
    low: float
    high: float


@dataclass(frozen=True)
class Column:
    """One parameter over the trials that it applies to."""

    name: str
    values: list[Any]
    y: Floats
    """The metric of these trials."""
    is_numeric: bool
    distinct: list[Any]
    """The values without repeats, sorted."""
    level: Levels
    """The level of each value, `[N]`; continuous values are cut into quarters."""
    names: list[str]
    """The names of the levels."""


def columns(trials: Sequence[Trial]) -> list[Column]:
    """Return each parameter that differs among the trials that have it."""
    found = []
    for name in dict.fromkeys(name for trial in trials for name in trial.params):
        values = [trial.params[name] for trial in trials if name in trial.params]
        y = np.array([trial.value for trial in trials if name in trial.params], float)
        is_numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        distinct = sorted(set(values), key=None if is_numeric else str)
        if is_numeric and len(distinct) > max(_BINS, len(values) // 3):
            edges = np.quantile(np.array(values, float), np.linspace(0, 1, _BINS + 1))
            names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
            level = np.searchsorted(edges[1:-1], np.array(values, float)).astype(np.int64)
        else:
            names = [f"{value}" for value in distinct]
            level = np.array([distinct.index(value) for value in values])
        if len(distinct) > 1:
            found.append(Column(name, values, y, is_numeric, distinct, level, names))
    return found


def _eta_squared(level: Levels, y: Floats) -> float:
    """Return the variance between the levels as a fraction of the total (eta squared)."""
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        return 0.0
    counts = np.bincount(level)
    means = np.bincount(level, y) / np.maximum(counts, 1)
    return float((counts * (means - y.mean()) ** 2).sum() / total)


def importances(trials: Sequence[Trial]) -> list[Importance]:
    """Return the importance of each parameter, the greatest first. The result is deterministic.

    A parameter that fewer than 5 trials have is skipped.
    """
    found = []
    for column in columns(trials):
        level, y = column.level, column.y
        if len(y) < min(_FEW, len(trials)):
            continue
        rng = np.random.default_rng(0)
        rows = rng.integers(0, len(y), (_SAMPLES, len(y)))
        low, high = np.quantile([_eta_squared(level[row], y[row]) for row in rows], [0.025, 0.975])
        null_quantile = np.quantile([_eta_squared(level, rng.permutation(y)) for _ in range(_SAMPLES)], 0.95)
        found.append(Importance(column.name, _eta_squared(level, y), float(low), float(high), float(null_quantile)))
    return sorted(found, key=lambda importance: -importance.share)


def correlations(trials: Sequence[Trial]) -> list[Correlation]:
    """Return the correlation of each numeric parameter, and of each value of the others, with the metric.

    Of positive numbers that span a factor of 8, the logarithm is used.
    """
    found = []
    for column in columns(trials):
        name, y = column.name, column.y
        if not column.is_numeric:
            found += [_correlation(f"{name} = {w}", (column.level == n) * 1.0, y) for n, w in enumerate(column.names)]
        elif (low := column.distinct[0]) > 0 and column.distinct[-1] / low >= 8:
            found.append(_correlation(f"log {name}", np.log(np.array(column.values, float)), y))
        else:
            found.append(_correlation(name, np.array(column.values, float), y))
    return found


def _correlation(name: str, x: Floats, y: Floats) -> Correlation:
    if len(y) < 4 or x.std() == 0 or y.std() == 0:
        return Correlation(name, float("nan"), -1.0, 1.0)
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -0.999999, 0.999999))
    low, high = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(len(y) - 3))
    return Correlation(name, r, float(low), float(high))
