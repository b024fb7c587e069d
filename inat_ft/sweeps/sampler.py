"""Which point to try next: a Gaussian process that never pays twice for a point of a finite space; else Optuna's TPE."""

from __future__ import annotations

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

from inat_ft.sweeps.space import Params

Floats = NDArray[np.float64]
_FIRST = 4
"""Points spread over the space before the first fit: with fewer, a fit sees noise only."""


class FiniteSampler(BaseSampler):
    """Proposes each point of a finite space once: in order (grid), shuffled (random), or by expected improvement (bayes).

    The proposal hangs on the seed and on the trials so far, and on nothing else: an interrupted sweep goes on as an
    uninterrupted one would. Points that are being tried count as tried, with an average outcome for the time being.
    """

    def __init__(self, points: Sequence[Params], method: str, seed: int) -> None:
        self.points = points
        self.method = method
        self.seed = seed
        self.space = {name: CategoricalDistribution(values) for name, values in column_values(points).items()}
        self.index = {frozenset(point.items()): place for place, point in enumerate(points)}
        columns = [
            _features([point.get(name) for point in points], distribution.choices)
            for name, distribution in self.space.items()
        ]
        self.features = np.concatenate([np.zeros((len(points), 0)), *columns], axis=1)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter, whether or not it counts for the next point."""
        return dict(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point, without what does not count for it; nothing when every point has been proposed."""
        values = self._tried(study, trial.number)
        left = [place for place in range(len(self.points)) if place not in values]
        if not left:
            return {}  # asked by a repetition, whose point is fixed
        return dict(self.points[left[self._choose(values, left, study.direction)]])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Asked only for what is not part of the point. Raises ValueError."""
        raise ValueError(f"'{param_name}' is not part of the point that is next")

    def _tried(self, study: Study, number: int) -> dict[int, float | None]:
        """The value of each point proposed before; None where there is none yet, or will be none."""
        tried: dict[int, float | None] = {}
        for other in study.get_trials(deepcopy=False):
            void = other.state == TrialState.FAIL and "point" not in other.user_attrs  # its worker died while asking
            place = self.index.get(frozenset(other.params.items()))
            if other.number < number and not void and place is not None:
                usable = other.state in (TrialState.COMPLETE, TrialState.PRUNED) and other.values
                value = other.value if usable else None
                if place not in tried or value is not None:
                    tried[place] = value
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


def column_values(points: Sequence[Params]) -> dict[str, list[Any]]:
    """The values of each parameter, each once, in the order in which the points have them."""
    found: dict[str, list[Any]] = {}
    for point in points:
        for name, value in point.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return found


def _features(column: Sequence[Any], values: Sequence[Any]) -> Floats:
    """One row per point: its value's place between 0 and 1, on a logarithmic scale where that spans decades; else one-hot.

    A point that has no such parameter stands in the middle of it.
    """
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    rows: Floats
    if len(values) > 2 and not numeric:
        rows = np.eye(len(values)) / math.sqrt(2)  # so that any two of them are 1 apart
    else:
        scaled = np.array(values, float) if numeric else np.arange(len(values), dtype=float)
        if scaled.min() > 0 and scaled.max() / scaled.min() >= 8:
            scaled = np.log(scaled)
        rows = ((scaled - scaled.min()) / (np.ptp(scaled) or 1.0))[:, None]
    place = {value: number for number, value in enumerate(values)}
    middle = (rows.min(0) + rows.max(0)) / 2
    return np.array([rows[place[value]] if value in place else middle for value in column])


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


def make_sampler(points: Sequence[Params] | None, method: str, seed: int, num_tried: int) -> BaseSampler:
    """The sampler for a space. points: all there are, or None without an end; num_tried: the proposals so far."""
    if points is not None:
        return FiniteSampler(points, method, seed)
    mixed = int(np.random.SeedSequence([seed, num_tried]).generate_state(1)[0])
    if method == "random":
        return RandomSampler(seed=mixed)
    return TPESampler(seed=mixed, n_startup_trials=5)
