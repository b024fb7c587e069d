"""The search methods: grid, random, and bayes by Optuna's TPE. No point of a finite space is proposed twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from inat_ft.sweeps.attempts import Trial
from inat_ft.sweeps.attempts import TrialState as State
from inat_ft.sweeps.conditional import MODE, target
from inat_ft.sweeps.space import Params, SweepSpec

NUM_STARTUP = 5
"""Random points before the first fit."""
_MAX_PROPOSALS = 100
"""Proposals of tried points before a random untried one is taken. TPE avoids them: they count as running trials."""


def propose(spec: SweepSpec, trials: Sequence[Trial], seed: int) -> Params | None:
    """Return the point to try next, or None when every point of a finite space has been tried.

    The point depends on the arguments only, so that an interrupted sweep continues as an uninterrupted one would.
    Running trials count as tried.
    """
    points = spec.points()
    if points is None:
        return _next(_study(spec, trials, _sampler(spec, seed, len(trials))), spec)
    order = np.arange(len(points)) if spec.method == "grid" else np.random.default_rng(seed).permutation(len(points))
    tried = {_key(trial.params) for trial in trials}
    untried = {_key(points[place]): points[place] for place in order if _key(points[place]) not in tried}
    if not untried:
        return None
    if spec.method == "bayes":
        study = _study(spec, trials, _sampler(spec, seed, len(trials)))
        for _ in range(_MAX_PROPOSALS):
            if _key(point := _next(study, spec)) in untried:
                return point
    first: Params = next(iter(untried.values()))
    return first


def _key(params: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    return frozenset(params.items())


def _sampler(spec: SweepSpec, seed: int, num_trials: int) -> BaseSampler:
    """Return the sampler for the next proposal; each has its own seed, since a worker proposes only some of them."""
    seed = int(np.random.SeedSequence([seed, num_trials]).generate_state(1)[0])
    return RandomSampler(seed) if spec.method == "random" else TPESampler(seed=seed, n_startup_trials=NUM_STARTUP)


def _study(spec: SweepSpec, trials: Sequence[Trial], sampler: BaseSampler) -> optuna.Study:
    """Return a study in memory with the trials so far, under the names of the sweep file."""
    study = optuna.create_study(direction=spec.metric.goal, sampler=sampler)
    space = distributions(spec)
    for trial in trials:
        running = trial.state is State.RUNNING
        if trial.value is None and not running:
            continue
        files = spec.active(spec.mode_of(trial.params))
        params = {files[shown]: value for shown, value in trial.params.items() if files.get(shown) in space}
        params = {name: _within(space[name], value) for name, value in params.items()}
        state, value = (TrialState.RUNNING, None) if running else (TrialState.COMPLETE, trial.value)
        kinds = {name: space[name] for name in params}
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=kinds))
    return study


def distributions(spec: SweepSpec) -> dict[str, BaseDistribution]:
    """Return the Optuna distribution of each varying parameter."""
    return {name: parameter.to_optuna() for name, parameter in spec.varying.items()}


def _within(distribution: BaseDistribution, value: Any) -> Any:
    """Return the value, moved to the nearest bound if rounding has moved it out of the range."""
    low, high = getattr(distribution, "low", None), getattr(distribution, "high", None)
    return value if low is None or high is None else min(max(value, low), high)


def _next(study: optuna.Study, spec: SweepSpec) -> Params:
    """Return the sampler's proposal without the parameters that do not apply to its mode."""
    proposed = study.ask(distributions(spec)).params
    modes = {name: value for name, value in proposed.items() if target(name)[1] == MODE}
    shown = spec.active(spec.mode_of(modes))
    return {name: spec.varying[own].cast(proposed[own]) for name, own in shown.items() if own in proposed}
