"""A sweep without a server: an Optuna study, from which workers claim one trial after the other.

Whatever a worker does to the study, it does under the claim, and it holds a lock for as long as its trial runs. So a
trial that runs without its lock being held is one whose worker has died, and the next worker takes it up again.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from inat_ft.settings import Override, format_override
from inat_ft.sweeps.conditional import MODE, target
from inat_ft.sweeps.parsing import parse_spec
from inat_ft.sweeps.sampler import column_values, make_sampler
from inat_ft.sweeps.space import MetricSpec, Params, SweepSpec
from inat_ft.sweeps.storage import Locks

MAX_ATTEMPTS = 2
"""A trial that fails is tried once more."""
_MAX_WORKER_DEATHS = 3
"""A trial whose worker dies this often counts as failed: it may be what kills them."""
FAILURES_IN_A_ROW = 10
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Trial:
    """One trial as it stands: its last attempt."""

    number: int
    """Counted from 0; a repetition keeps the number."""
    state: str
    """complete, pruned, running, failed, interrupted, or waiting."""
    point: Params
    value: float | None
    run: str
    """Name of its run directory."""
    reason: str = ""
    """Why it failed."""
    seconds: float | None = None
    attempts: int = 1


@dataclass
class Claimed:
    """A trial that this process is to run; its lock is held until `release`."""

    number: int
    point: Params
    run: str
    trial: optuna.Trial
    locks: ExitStack = field(repr=False)


class Sweep:
    """A sweep that exists, with its study open."""

    def __init__(self, id: str, folder: Path, study: optuna.Study, locks: Locks) -> None:
        self.id, self.folder, self.study, self.locks = id, folder, study, locks
        attrs = study.user_attrs
        self.spec: SweepSpec = parse_spec(attrs["spec"])
        self.seed: int = attrs["seed"]
        self.wandb: str | None = attrs.get("wandb")
        """`entity/project/sweep` when W&B gives out the trials; the study then only keeps the outcomes."""
        self.points = self.spec.points()

    @property
    def runs(self) -> Path:
        """Folder of the trials' run directories."""
        return self.folder / "runs"

    @property
    def pinned(self) -> list[Override]:
        """What the sweep decides where its file does not: the metric to monitor, and the split it first ran with."""
        split, metric = self.study.user_attrs.get("split"), self.spec.metric.name
        monitor: list[Override] = [("stop.monitor", metric)] if metric != MetricSpec().name else []
        return [*monitor, ("data.split", split)] if split else monitor

    def settings(self, point: Params) -> list[Override]:
        """All that makes up a trial."""
        return [*self.pinned, *self.spec.overrides(point)]

    def command(self, point: Params) -> str:
        """The training of a trial as a command that can be pasted."""
        settings = (format_override(key, value) for key, value in self.settings(point))
        return " ".join(["inat-ft train", *(f"--set {shlex.quote(setting)}" for setting in settings)])

    def trials(self) -> list[Trial]:
        """All trials by number."""
        groups = _by_number(self.study.get_trials(deepcopy=False))
        return [_view(attempts) for _, attempts in sorted(groups.items())]

    def best(self) -> list[Trial]:
        """The complete trials, the best first."""
        done = [trial for trial in self.trials() if trial.state == "complete" and trial.value is not None]
        return sorted(done, key=lambda trial: self._loss(trial.value))

    def _loss(self, value: float | None) -> float:
        assert value is not None
        return -value if self.spec.metric.goal == "maximize" else value

    def state(self) -> tuple[str, str]:
        """finished, running, stopped, failed or waiting (nobody works on it), and why."""
        with self.locks.claim():
            self._fail_stale_trials()
        attempts = self.study.get_trials(deepcopy=False)
        ended = self._ended(attempts)
        if any(attempt.state == TrialState.RUNNING for attempt in attempts):
            return "running", ended[1] if ended else ""
        return ended or ("waiting", "")

    def claim(self) -> Claimed | tuple[str, str] | None:
        """The next trial for this process; (state, why) when the sweep has ended; None while others run the last ones."""
        with self.locks.claim():
            self._fail_stale_trials()
            attempts = self.study.get_trials(deepcopy=False)
            ended = self._ended(attempts)
            if ended is not None and ended[0] != "finished":
                return ended
            again = self._next_retry(attempts)
            if ended is not None or (again is None and self._all_given_out(attempts)):
                return ended
            return self._take(attempts, again)

    def _take(self, attempts: Sequence[FrozenTrial], again: FrozenTrial | None) -> Claimed:
        number = len(_by_number(attempts))
        if again is not None and again.state != TrialState.WAITING:
            self.study.enqueue_trial(
                again.params, user_attrs={key: again.user_attrs[key] for key in ("number", "run", "point")}
            )
        self.study.sampler = make_sampler(self.points, self.spec.method, self.seed, number)
        trial = self.study.ask()
        locks = ExitStack()
        locks.enter_context(self.locks.hold(trial.number))
        point = self._suggest(trial, again.user_attrs["point"] if again else None)
        if again is None:
            trial.set_user_attr("number", number)
            trial.set_user_attr("run", f"{self.id}-{number:02d}")
            trial.set_user_attr("point", point)  # only now does the trial count: see `_by_number`
        attrs = trial.user_attrs
        return Claimed(attrs["number"], attrs["point"], attrs["run"], trial, locks)

    def report(self, claimed: Claimed, epoch: int, value: float) -> bool:
        """Note the metric after an epoch, where that can end the trial; True when it does."""
        if self.spec.early_terminate is None:
            return False
        claimed.trial.report(value, epoch)
        return claimed.trial.should_prune()

    def finish(self, claimed: Claimed, value: float, pruned: bool = False) -> None:
        """Record the outcome of a trial and let go of it."""
        with claimed.locks, self.locks.claim():
            if pruned:
                claimed.trial.set_user_attr("value", value)
            self.study.tell(claimed.trial, None if pruned else value, TrialState.PRUNED if pruned else None)

    def fail(self, claimed: Claimed, reason: str, for_good: bool = False) -> None:
        """Record a failure and let go of the trial; for_good: it would fail again, and is not repeated."""
        with claimed.locks, self.locks.claim():
            if for_good:
                claimed.trial.set_user_attr("for_good", True)
            claimed.trial.set_user_attr("reason", reason)
            self.study.tell(claimed.trial, state=TrialState.FAIL)

    def requeue(self, claimed: Claimed, why: str) -> None:
        """Leave a trial to whoever claims next: it goes on from its last epoch."""
        with claimed.locks, self.locks.claim():
            claimed.trial.set_user_attr("interrupted", why)
            self.study.tell(claimed.trial, state=TrialState.FAIL)

    def stop(self) -> None:
        """Give out no more trials."""
        self.study.set_user_attr("stopped", True)

    def resume(self) -> None:
        """Undo a stop. When it ended by failures in a row, or by nothing but failures, all may be tried anew."""
        if self.study.user_attrs.get("stopped"):
            self.study.set_user_attr("stopped", False)
        attempts = self.study.get_trials(deepcopy=False)
        ended = self._ended(attempts)
        good = any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in attempts)
        if ended is not None and (ended[0] == "failed" or not good):
            self.study.set_user_attr("since", len(attempts))

    def import_trial(
        self, number: int, point: Params, value: float | None, run: str, seconds: float, reason: str = ""
    ) -> None:
        """Keep the outcome of a trial that someone else gave out."""
        attrs = {
            "number": number,
            "point": point,
            "run": run,
            "seconds": seconds,
            **({"reason": reason} if reason else {}),
        }
        with self.locks.claim():
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            self.study.add_trial(optuna.trial.create_trial(state=state, value=value, user_attrs=attrs))

    def _suggest(self, trial: optuna.Trial, again: Params | None) -> Params:
        """Have the sampler propose a point; `again`: the point of a repetition, which is fixed."""
        if self.points is not None:
            choices = column_values(self.points)
            point = again or trial.relative_params
            return {name: trial.suggest_categorical(name, choices[name]) for name in point}
        spec, point = self.spec, {}
        modes = [name for name in spec.varying if target(name)[1] == MODE]
        for name in modes:
            point[name] = spec.varying[name].suggest(trial, name)
        for shown, name in spec.active(spec.mode_of(point)).items():
            if name in spec.varying and name not in modes:
                point[shown] = spec.varying[name].suggest(trial, name)
        return point

    def _fail_stale_trials(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self.locks.is_held(trial.number):
                dead = optuna.Trial(self.study, trial._trial_id)
                dead.set_user_attr("interrupted", "its worker was killed")
                self.study.tell(dead, state=TrialState.FAIL)

    def _ended(self, attempts: Sequence[FrozenTrial]) -> tuple[str, str] | None:
        if self.study.user_attrs.get("stopped"):
            return "stopped", "it was stopped; `sweep run` goes on"
        if self._consecutive_failures(attempts) >= FAILURES_IN_A_ROW:
            return "failed", f"{FAILURES_IN_A_ROW} failures in a row, the last one: {_reason(attempts)}"
        goal, done = self.spec.metric, [t for t in attempts if t.state == TrialState.COMPLETE and t.values]
        if goal.target is not None and any(self._loss(t.value) <= self._loss(goal.target) for t in done):
            return "finished", f"a trial reached the target, {goal.name} {goal.target}"
        busy = any(t.state in (TrialState.RUNNING, TrialState.WAITING) for t in attempts)
        if self.wandb or busy or not self._all_given_out(attempts) or self._next_retry(attempts):
            return None
        used_up = self.points is not None and self.spec.num_trials == len(self.points)
        return "finished", f"all {len(self.points or ())} points have been tried" if used_up else "run_cap is reached"

    def _all_given_out(self, attempts: Sequence[FrozenTrial]) -> bool:
        limit = self.spec.num_trials
        return limit is not None and len(_by_number(attempts)) >= limit

    def _next_retry(self, attempts: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The last attempt of a trial that was interrupted, or has failed for the first time, or waits already."""
        since = self.study.user_attrs.get("since", 0)
        for tries in _by_number(attempts).values():
            last = tries[-1]
            recent = [t for t in tries if t.number >= since and t.state == TrialState.FAIL]
            failures = sum(
                MAX_ATTEMPTS if "for_good" in t.user_attrs else 1 for t in recent if "interrupted" not in t.user_attrs
            )
            deaths = sum(t.user_attrs.get("interrupted") == "its worker was killed" for t in recent)
            open_ = last.state == TrialState.FAIL and failures < MAX_ATTEMPTS and deaths < _MAX_WORKER_DEATHS
            if last.state == TrialState.WAITING or (open_ and not self.wandb):
                return last
        return None

    def _consecutive_failures(self, attempts: Sequence[FrozenTrial]) -> int:
        """Failures since the last trial that did not fail, the latest to end first."""
        ended = [t for t in attempts if t.state.is_finished() and "interrupted" not in t.user_attrs]
        ended = [t for t in ended if t.number >= self.study.user_attrs.get("since", 0) and "point" in t.user_attrs]
        ended.sort(key=lambda t: t.datetime_complete.timestamp() if t.datetime_complete else 0.0, reverse=True)
        return next((place for place, t in enumerate(ended) if t.state != TrialState.FAIL), len(ended))


def _by_number(attempts: Sequence[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    """The attempts of each trial, in order; a worker that died while asking leaves one that is no trial's."""
    groups: dict[int, list[FrozenTrial]] = {}
    for attempt in attempts:
        if "point" in attempt.user_attrs:
            groups.setdefault(attempt.user_attrs["number"], []).append(attempt)
    return groups


def _reason(attempts: Sequence[FrozenTrial]) -> str:
    return next((str(t.user_attrs["reason"]) for t in reversed(attempts) if "reason" in t.user_attrs), "unknown")


def _view(attempts: Sequence[FrozenTrial]) -> Trial:
    last = attempts[-1]
    attrs, state = last.user_attrs, _STATES[last.state]
    if state == "failed" and "interrupted" in attrs:
        state = "interrupted"
    value = attrs.get("value", last.value if last.values else None)
    times = [a.duration.total_seconds() for a in attempts if a.duration is not None]
    return Trial(
        number=attrs["number"],
        state=state,
        point=attrs["point"],
        value=value if value is not None and math.isfinite(value) else None,
        run=attrs["run"],
        reason=str(attrs.get("reason", attrs.get("interrupted", ""))) if state in ("failed", "interrupted") else "",
        seconds=attrs.get("seconds", sum(times) if times else None),
        attempts=len(attempts),
    )


def short(value: object) -> str:
    """A parameter's value for people: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
