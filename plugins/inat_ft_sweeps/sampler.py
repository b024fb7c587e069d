"""The search methods: grid, random, and bayes by Optuna's TPE. No point of a finite space is proposed twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from inat_ft_sweeps.attempts import Trial
from inat_ft_sweeps.attempts import TrialState as State
from inat_ft_sweeps.space import MODE, Params, SweepSpec, target

NUM_STARTUP = 5  # random points before the first fit
_MAX_PROPOSALS = 100
"""Proposals of tried points before a random untried one is taken. TPE avoids them: they count as running trials."""


def propose(spec: SweepSpec, trials: Sequence[Trial], seed: int) -> Params | None:
    """Return the point to try next, or None when every point of a finite space has been tried.

    The point depends on the arguments only, so that an interrupted sweep continues as an uninterrupted one would.
    Running trials count as tried.
    """
    points = spec.points()
    number = len(points or ())
    order = np.arange(number) if spec.method == "grid" else np.random.default_rng(seed).permutation(number)
    tried = {frozenset(trial.params.items()) for trial in trials}
    ordered: list[Params] = [points[place] for place in order] if points else []
    untried = [point for point in ordered if frozenset(point.items()) not in tried]
    if points is not None and not untried:
        return None
    if points is None or spec.method == "bayes":
        study = _study(spec, trials, seed)
        for _ in range(_MAX_PROPOSALS):
            proposed = study.ask(distributions(spec)).params
            modes = {name: value for name, value in proposed.items() if target(name)[1] == MODE}
            shown = spec.active(spec.mode_of(modes))  # without the parameters that do not apply to the mode
            point = {name: spec.varying[own].cast(proposed[own]) for name, own in shown.items() if own in proposed}
            if points is None or point in untried:
                return point
    return untried[0]


def _study(spec: SweepSpec, trials: Sequence[Trial], seed: int) -> optuna.Study:
    """Return a study in memory with the trials so far, under the names of the sweep file.

    The sampler of each proposal has its own seed, since a worker proposes only some of them.
    """
    seed = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    sampler = RandomSampler(seed) if spec.method == "random" else TPESampler(seed=seed, n_startup_trials=NUM_STARTUP)
    study = optuna.create_study(direction=spec.metric.goal, sampler=sampler)
    space = distributions(spec)
    for trial in trials:
        running = trial.state is State.RUNNING
        if trial.value is None and not running:
            continue
        files = spec.active(spec.mode_of(trial.params))
        params = {files[shown]: value for shown, value in trial.params.items() if files.get(shown) in space}
        kinds = {name: space[name] for name in params}
        for name, kind in kinds.items():
            if isinstance(kind, FloatDistribution):  # rounding can move a value out of the range
                params[name] = min(max(params[name], kind.low), kind.high)
        state, value = (TrialState.RUNNING, None) if running else (TrialState.COMPLETE, trial.value)
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=kinds))
    return study


def distributions(spec: SweepSpec) -> dict[str, BaseDistribution]:
    return {name: parameter.to_optuna() for name, parameter in spec.varying.items()}
