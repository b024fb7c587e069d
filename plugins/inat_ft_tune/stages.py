"""The stages of a tuning: head sweep, successive halving, new seeds, final training. Each can be continued."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from inat_ft_sweeps.base import TrialJob
from inat_ft_sweeps.objective import TrainingObjective

from inat_ft.errors import DataError, StorageError, UsageError
from inat_ft.records import read_record
from inat_ft.setup import TrainCallbacks
from inat_ft.text import pluralize
from inat_ft_tune import planner
from inat_ft_tune.candidates import Params, head_params
from inat_ft_tune.planner import format_seconds
from inat_ft_tune.session import Session, TooShortError
from inat_ft_tune.state import StageTime, Trial
from inat_ft_tune.trainer import Gate, limited, note

_FEW_EPOCHS = 10


def sweep_heads(session: Session) -> None:
    """Train heads on the cached features, in the same steps: as many as planned, then others if they were fast."""
    planned = planner.plan_heads(session.head_cost, session.left)
    number, epochs = (planned.runs, planned.epochs) if planned else (1, 1)
    started = time.monotonic()
    params = head_params(session.base)
    trials = _train_heads(session, params[:number], 1, epochs)
    took = sum(trial.seconds for trial in trials) - max(trial.epoch_s[0] if trial.epoch_s else 0.0 for trial in trials)
    each = took / len(trials)
    if planned is None:  # the features took less time than measured
        epochs, each = _FEW_EPOCHS, session.head_cost.run(_FEW_EPOCHS)
    more = int((planner.HEADS * (session.left + took) - took) / max(each, 1e-3))
    if more > 0 and params[number:]:
        trials += _train_heads(session, params[number : number + more], number + 1, epochs)
    best = best_of(trials)
    if best is None:
        raise UsageError(f"no head could be trained: {trials[0].reason}", "change the settings with --set")
    shown = f"{pluralize(len(trials), 'run')} in {format_seconds(time.monotonic() - started)}"
    session.log(f"heads: {shown}; best: {_result(best)}")


def _train_heads(session: Session, params: Sequence[Params], first: int, epochs: int) -> list[Trial]:
    started, deadline = time.monotonic(), time.monotonic() + session.left
    trials = [
        session.trial(f"head-{place}", "heads", "head", each, session.state.seed)
        for place, each in enumerate(params, first)
    ]

    def report(epoch: int, value: float) -> bool:
        return epoch >= epochs or time.monotonic() > deadline

    jobs = [
        TrialJob(trial.name, session.folder / "runs", [*session.state.settings, *trial.overrides()], report)
        for trial in trials
    ]
    progress = limited(session.progress, session.end, session.too_short)
    objective = TrainingObjective("val_accuracy", session.cache, lambda config: TrainCallbacks(progress=progress))
    for trial, outcome in zip(trials, objective.together(jobs), strict=True):
        trial.seconds = (time.monotonic() - started) / len(trials)
        if isinstance(outcome, (DataError, StorageError, TooShortError)):
            raise outcome
        if isinstance(outcome, Exception):
            trial.status, trial.reason = "failed", str(outcome)
        else:
            note(trial, read_record(Path(trial.directory))[0])
    return trials


def halve(session: Session) -> None:
    """Try the strategies by successive halving. The steps are planned again with the costs of the runs so far."""
    state = session.state
    deadline = time.monotonic() + planner.HALVING * session.left
    if not state.rungs:
        owners = {name: strategy for name, (strategy, _) in session.candidates.items()}
        found, _ = planner.plan_halving(session.costs(), session.left, owners)
        state.rungs = [(rung.candidates, rung.epochs) for rung in found.rungs[:1]] or [(1, 1)]
        state.survivors = list(found.names)
    step = 0
    while step < len(state.rungs):
        epochs = state.rungs[step][1]
        trials = list(map(session.candidate, state.survivors))
        for trial in trials:
            session.advance(trial, epochs, deadline)
            session.save()
        if step == 0 and len(state.rungs) == 1:
            trials += _try_more(session, epochs, deadline)
        ranked = sorted((trial for trial in trials if trial.value is not None), key=_rank)
        if step == len(state.rungs) - 1:
            costs = {trial.name: session.cost_of(trial.strategy) for trial in ranked}
            seconds = deadline - time.monotonic()
            later = planner.later_rungs(costs, epochs, seconds, planner.CONFIRM * (session.left - seconds))[:1]
            state.rungs += [(rung.candidates, rung.epochs) for rung in later]
        keep = state.rungs[step + 1][0] if step + 1 < len(state.rungs) else len(ranked)
        for trial in trials:
            if trial not in ranked[:keep]:
                session.drop(trial)
        state.survivors = [trial.name for trial in ranked[:keep]]
        session.save()
        if ranked:
            shown = f"{pluralize(len(trials), 'candidate')} to {pluralize(epochs, 'epoch')}"
            session.log(f"strategies, step {step + 1}: {shown}; best: {_result(ranked[0])}")
        step += 1


def _try_more(session: Session, epochs: int, deadline: float) -> list[Trial]:
    """Try further candidates in the first step, if the runs were faster than measured."""
    state = session.state
    tried = {trial.name for trial in state.of_stage("halving")}
    added: list[Trial] = []
    if not tried and session.candidates:  # costs are estimates: find out with the most likely candidate
        late = time.monotonic() + session.left
        added.append(_try_one(session, next(iter(session.candidates)), epochs, late, is_probe=True))
        tried.add(added[0].name)
    for name in session.candidates:
        costs = session.costs_now()
        known = {each: costs[each] for each in state.survivors}
        left = deadline - time.monotonic()
        if name not in tried and planner.fits_too(known, name, costs[name], epochs, left):
            added.append(_try_one(session, name, epochs, deadline))
    return added


def _try_one(session: Session, name: str, epochs: int, deadline: float, is_probe: bool = False) -> Trial:
    trial = session.candidate(name)
    session.advance(trial, epochs, deadline, is_probe)
    session.state.survivors.append(name)
    session.save()
    return trial


def confirm(session: Session) -> None:
    """Train the leaders again with new seeds, and choose the one with the best mean.

    A head, whose training is complete, is compared with the final run instead: the leaders have few epochs.
    """
    state, best_head = session.state, best_of(session.state.of_stage("heads"))
    assert best_head is not None  # otherwise the head sweep raises an error
    pool = sorted(map(state.trial, state.survivors), key=_rank) or [best_head]
    if not state.leaders:
        found = planner.plan_confirmation([session.cost(trial).run(trial.epochs) for trial in pool], session.left)
        state.leaders, state.seeds = [trial.name for trial in pool[: found.leaders]], found.seeds
    deadline = time.monotonic() + planner.CONFIRM * session.left
    for number in range(1, state.seeds + 1):
        _repeat_leaders(session, number, deadline if number > 1 else session.end)
    state.chosen = _choose(session, pool).name
    values = {name: state.confirmed(name) for name in state.leaders}
    for leader in map(state.trial, state.leaders):
        if found_values := values[leader.name]:
            shown = ", ".join(f"{value:.4f}" for value in found_values)
            session.log(f"new seeds: {leader.settings}: mean {mean(found_values):.4f} ({shown})")


def _repeat_leaders(session: Session, number: int, deadline: float) -> None:
    """Train each leader with a new seed, if all of them fit into the time: a run of fewer epochs would be no repetition."""
    state, seed = session.state, session.state.seed + number
    leaders = list(map(state.trial, state.leaders))
    trials = [
        session.trial(f"{leader.name}-seed{seed}", "confirmation", leader.strategy, leader.params, seed)
        for leader in leaders
    ]
    waiting = [leader for leader, trial in zip(leaders, trials, strict=True) if trial.status == "waiting"]
    if time.monotonic() + sum(session.cost(leader).run(leader.epochs) for leader in waiting) > deadline:
        return
    for leader, trial in zip(leaders, trials, strict=True):
        trial.of = leader.name
        if trial.status == "waiting":
            gate = Gate(leader.epochs, session.end, session.end, finish=True)
            session.train(trial, gate)
            if gate.is_late:
                trial.status, trial.reason = "failed", "there was no time for all epochs"
            session.save()


def train_choice(session: Session) -> None:
    """Train the chosen settings as long as the time allows, and select the run."""
    state = session.state
    choice = state.trial(state.chosen)
    plan = planner.plan_final(session.cost(choice), session.left)
    known = [trial for trial in state.of_stage("final") if trial.status != "failed"]
    if known or plan.epochs >= min(choice.epochs, 2):
        seed = state.seed + state.seeds + 1
        name = known[0].name if known else session.free_name()
        trial = session.trial(name, "final", choice.strategy, choice.params, seed, session.runs)
        trial.of = choice.name
        session.train(trial, Gate(planner.MAX_EPOCHS, time.monotonic() + session.left, session.end, finish=True))
    elif choice.status == "paused" and plan.epochs:  # no time for a new run: continue that of the search
        session.train(choice, Gate(planner.MAX_EPOCHS, time.monotonic() + session.left, session.end, finish=True))
    done = [trial for trial in state.trials if trial.status == "done" and choice.name in (trial.name, trial.of)]
    run = best_of(done) or best_of([trial for trial in state.trials if trial.status == "done"])
    head = best_of(state.of_stage("heads"))
    assert run is not None and head is not None  # the head sweep has complete runs
    if head.name != choice.name and (head.value or 0.0) > (run.value or 0.0):
        state.chosen, run = head.name, head
    state.run = run.directory
    for trial in state.trials:
        if trial.status in ("paused", "waiting"):
            session.drop(trial)


def _choose(session: Session, pool: list[Trial]) -> Trial:
    """Return the leader with the best mean over the new seeds; without new seeds, the candidate with the best result."""
    repeated = [trial for trial in pool if session.state.confirmed(trial.name)]
    if len(repeated) > 1:
        return max(repeated, key=lambda trial: mean(session.state.confirmed(trial.name)))
    return pool[0]


def best_of(trials: list[Trial]) -> Trial | None:
    """Return the trial with the best result."""
    return min((trial for trial in trials if trial.value is not None), key=_rank, default=None)


def _rank(trial: Trial) -> tuple[float, float]:
    """Return a key that sorts the best first; of equals the faster."""
    return -(trial.value or 0.0), trial.seconds


def _result(trial: Trial) -> str:
    return f"{trial.settings}: {trial.value or 0.0:.4f}"


STAGES: Mapping[str, Callable[[Session], None]] = {
    "heads": sweep_heads,
    "halving": halve,
    "confirmation": confirm,
    "final": train_choice,
}


def run_stages(session: Session) -> None:
    """Run the stages that are not finished. The state is saved whatever happens."""
    for name, stage in STAGES.items():
        if name not in session.state.finished:
            started = time.monotonic()
            try:
                session.use_fastest_threads()
                stage(session)
                session.state.finished.append(name)
            finally:
                session.state.times.setdefault(name, StageTime()).taken += time.monotonic() - started
                session.save()
