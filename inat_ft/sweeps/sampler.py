"""Which point to try next: a Gaussian process that never pays twice for a point of a finite space; else Optuna's TPE."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

Floats = NDArray[np.float64]
_FIRST = 4
"""Points spread over the space before the first fit: with fewer, a fit sees noise only."""


class FiniteSampler(BaseSampler):
    """Proposes each point of a finite space once: in order (grid), shuffled (random), or by expected improvement (bayes).

    The proposal hangs on the seed and on the trials so far, and on nothing else: an interrupted sweep goes on as an
    uninterrupted one would. Points that are being tried count as tried, with an average outcome for the time being.
    """

    def __init__(self, space: Mapping[str, CategoricalDistribution], method: str, seed: int) -> None:
        self.space = dict(space)
        self.method = method
        self.seed = seed
        choices = [distribution.choices for distribution in space.values()]
        self.points = list(itertools.product(*(range(len(values)) for values in choices)))
        columns = [_features(values) for values in choices]
        self.features = np.array(
            [
                np.concatenate([np.zeros(0), *(column[place] for column, place in zip(columns, point, strict=True))])
                for point in self.points
            ]
        ).reshape(len(self.points), -1)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return dict(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point; nothing when every point has been proposed."""
        values = self._tried(study, trial.number)
        left = [place for place in range(len(self.points)) if place not in values]
        if not left:
            return {}  # asked by a repetition, whose point is fixed
        place = left[self._choose(values, left, study.direction)]
        named = zip(self.space.items(), self.points[place], strict=True)
        return {name: distribution.choices[choice] for (name, distribution), choice in named}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Asked only when no point is left. Raises ValueError."""
        raise ValueError("every point of the space has been tried")

    def _tried(self, study: Study, number: int) -> dict[int, float | None]:
        """The value of each point proposed before; None where there is none yet, or will be none."""
        index = {point: place for place, point in enumerate(self.points)}
        tried: dict[int, float | None] = {}
        for other in study.get_trials(deepcopy=False):
            void = other.state == TrialState.FAIL and "point" not in other.user_attrs  # its worker died while asking
            if other.number < number and not void and set(self.space) <= set(other.params):
                point = tuple(int(d.to_internal_repr(other.params[name])) for name, d in self.space.items())
                usable = other.state in (TrialState.COMPLETE, TrialState.PRUNED) and other.values
                value = other.value if usable else None
                if index[point] not in tried or value is not None:
                    tried[index[point]] = value
        return tried

    def _choose(self, tried: Mapping[int, float | None], left: Sequence[int], direction: StudyDirection) -> int:
        """Position in `left` of the point to try."""
        if self.method == "grid":
            return 0
        shuffled = np.random.default_rng(self.seed).permutation(len(self.points)).argsort()[list(left)]
        if self.method == "random":
            return int(shuffled.argmin())
        known = {place: value for place, value in tried.items() if value is not None and math.isfinite(value)}
        if len(tried) < _FIRST or len(known) < 2:
            return self._farthest(list(tried), left, shuffled)
        sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
        y = sign * np.array(list(known.values()))
        pending = [place for place in tried if place not in known]
        gain = expected_improvement(self.features[list(known)], y, self.features[pending], self.features[list(left)])
        return int(np.lexsort((shuffled, -gain.round(12)))[0])

    def _farthest(self, tried: Sequence[int], left: Sequence[int], shuffled: NDArray[np.int64]) -> int:
        """The point farthest from all that were tried, so that the first fit sees the whole space."""
        if not tried:
            return int(shuffled.argmin())
        gaps = np.abs(self.features[list(left)][:, None] - self.features[list(tried)][None]).sum(2).min(1)
        return int(np.lexsort((shuffled, -gaps.round(9)))[0])


def _features(values: Sequence[Any]) -> Floats:
    """One row per value: its place between 0 and 1, on a logarithmic scale where it spans decades; else one-hot."""
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    rows: Floats
    if len(values) > 2 and not numeric:
        rows = np.eye(len(values)) / math.sqrt(2)  # so that any two of them are 1 apart
        return rows
    scaled = np.array(values, float) if numeric else np.arange(len(values), dtype=float)
    if scaled.min() > 0 and scaled.max() / scaled.min() >= 8:
        scaled = np.log(scaled)
    rows = ((scaled - scaled.min()) / (np.ptp(scaled) or 1.0))[:, None]
    return rows


def expected_improvement(x: Floats, y: Floats, pending: Floats, candidates: Floats) -> Floats:
    """Expected improvement over the best mean at the candidates, `[M]`, in standard deviations of y.

    x: `[N, D]` and y: `[N]` are the trials so far, higher is better; pending: `[P, D]` have no outcome yet. The best is
    that of the fitted means and not of the noisy values (Gramacy and Lee 2010, "plug-in"). Source: Jones et al. 1998.
    """
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    spread = float(y.std())
    y = (y - y.mean()) / spread if spread > 0 else y * 0.0
    x, y = np.concatenate([x, pending]), np.concatenate([y, np.zeros(len(pending))])
    kernel = ConstantKernel(1.0, (0.1, 10.0)) * RBF([2.0] * x.shape[1], (1.0, 20.0))
    process = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-3, 1.0)), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a length stands at its bound is no news: some parameters do not matter
        process.fit(x, y)
        mean, deviation = process.predict(candidates, return_std=True)
        best = process.predict(x).max()
    noise = float(process.kernel_.k2.noise_level)
    deviation = np.sqrt(np.maximum(deviation**2 - noise, 1e-12))
    z = (mean - best) / deviation
    gain: Floats = deviation * (z * norm.cdf(z) + norm.pdf(z))
    return gain


def make_sampler(
    space: Mapping[str, BaseDistribution], finite: bool, method: str, seed: int, num_tried: int
) -> BaseSampler:
    """The sampler for a space; a finite one is wholly categorical. num_tried: the proposals so far."""
    if finite:
        choices = {name: d for name, d in space.items() if isinstance(d, CategoricalDistribution)}
        return FiniteSampler(choices, method, seed)
    mixed = int(np.random.SeedSequence([seed, num_tried]).generate_state(1)[0])
    if method == "random":
        return RandomSampler(seed=mixed)
    return TPESampler(seed=mixed, n_startup_trials=5)
