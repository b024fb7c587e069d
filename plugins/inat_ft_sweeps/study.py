"""A sweep as an Optuna study, from which workers claim one trial after the other.

A worker changes the study under the sweep's claim, and holds a lock as long as its trial runs. An attempt that is running
while its lock is free belongs to a dead worker; the next worker runs the trial again.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from inat_ft.data.manifest import find_manifest
from inat_ft.errors import InatFtError, PluginError, StorageError
from inat_ft.registry import SWEEP_BACKENDS, call_plugin, plugin_label
from inat_ft.settings import Override, format_override
from inat_ft_sweeps.attempts import AttemptTable, Cause, Trial, TrialState
from inat_ft_sweeps.base import SweepBackend, SweepState, SweepStatus, load_backend
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.space import MetricSpec, Params, SweepSpec
from inat_ft_sweeps.storage import Storage

MAX_CONSECUTIVE_FAILURES = 10
_SHORT_PATIENCE_S = 5.0
T = TypeVar("T")


@dataclass
class Claimed:
    """A trial that this process runs. It holds the trial's lock until the outcome is recorded."""

    number: int
    params: Params
    run: str
    trial: optuna.Trial
    locks: ExitStack = field(repr=False)
    started: float = field(default_factory=time.monotonic)
    pruned: bool = False


class Sweep:
    """An existing sweep with its study open.

    options: the command-line options that find this sweep, for the commands in messages. Every method that reads or
    changes the study raises StorageError if its database stays unavailable.
    """

    def __init__(self, id: str, folder: Path, study: optuna.Study, storage: Storage, options: str = "") -> None:
        self.id, self.folder, self.study, self.storage, self.locks = id, folder, study, storage, storage.locks
        self.options = options
        attrs = study.user_attrs
        self.spec: SweepSpec = parse_spec(attrs["spec"])
        self.seed: int = attrs["seed"]
        self.backend_name: str = attrs.get("backend", "local")
        self.address: str | None = attrs.get("address")  # at a server, such as `entity/project/sweep`
        self.runs = folder / "runs"

    @cached_property
    def backend(self) -> SweepBackend:
        """The backend that decides the points. Raises ConfigError or PluginError if it is not installed or fails."""
        return load_backend(self.backend_name)

    def next_command(self, command: str, *options: str) -> str:
        """Return a command on this sweep, such as `inat-ft sweep run ID`, with the options that find it."""
        return " ".join(filter(None, ["inat-ft sweep", command, self.id, self.options, *options]))

    def attr(self, name: str, default: Any = None) -> Any:
        return self.storage.retry(lambda: self.study.user_attrs.get(name, default))

    def note(self, name: str, value: Any) -> None:
        self.storage.retry(lambda: self.study.set_user_attr(name, value))

    def pin_split(self) -> None:
        """Use the newest split for all runs if the sweep names none."""
        if "data.split" not in dict(self.spec.overrides({})) and not self.attr("split"):
            self.note("split", find_manifest().as_posix())

    @property
    def pinned(self) -> list[Override]:
        """Settings that the sweep adds to its file: the metric to monitor, and the split of its first run."""
        split, metric = self.attr("split"), self.spec.metric.name
        monitor: list[Override] = [("stop.monitor", metric)] if metric != MetricSpec().name else []
        return [*monitor, ("data.split", split)] if split else monitor

    def settings(self, params: Params) -> list[Override]:
        return [*self.pinned, *self.spec.overrides(params)]

    def command(self, params: Params) -> str:
        """Return the `inat-ft train` command of a trial."""
        settings = (format_override(key, value) for key, value in self.settings(params))
        return " ".join(["inat-ft train", *(f"--set {shlex.quote(setting)}" for setting in settings)])

    def trials(self) -> list[Trial]:
        return self.storage.retry(self._table).trials()

    def best(self) -> list[Trial]:
        """Return the complete trials, the best first."""
        done = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE and trial.value is not None]
        return sorted(done, key=lambda trial: self._loss(trial.value or 0.0))

    def status(self) -> SweepStatus:
        """Return the state of the sweep, and why it has ended."""
        table = self._under_claim(self._table_without_stale)
        end = self._end(table)
        if any(attempt.state is TrialState.RUNNING for attempt in table.attempts):
            return SweepStatus(SweepState.RUNNING, end.message if end else "")
        return end or SweepStatus(SweepState.WAITING)

    def require_success(self, status: SweepStatus, *options: str) -> None:
        """Raise InatFtError if the sweep failed, or all of its trials. options: those that `sweep run` needs."""
        again = f"fix the cause, then run: {self.next_command('run', *options)}"
        if status.state is SweepState.FAILED:
            raise InatFtError(f"the sweep stopped: {status.message}", again)
        if (trials := self.trials()) and all(trial.state is TrialState.FAILED for trial in trials):
            raise InatFtError(
                f"no trial of sweep {self.id} has succeeded; the last error: {trials[-1].reason}",
                f"{again}\nlist all errors: {self.next_command('status')}",
            )

    def claim(self) -> Claimed | SweepStatus | None:
        """Return the next trial for this process, the status of a sweep that has ended, or None.

        None: all trials are assigned and others still run. If one of their workers dies, its trial is claimed later.
        """
        return self._under_claim(self._claim)

    def _claim(self) -> Claimed | SweepStatus | None:
        table = self._table_without_stale()
        end = self._end(table)
        if end is not None and end.state is not SweepState.FINISHED:
            return end
        retry = table.next_retry() if end is None else None
        if retry is not None:
            if retry.state is not TrialState.WAITING:
                self._add(OptunaState.WAITING, retry.number, retry.params, retry.run)
        elif end is not None or table.exhausted:
            return end
        else:
            number = len(table.by_trial)
            params = self._ask(table.trials())
            if params is None:
                self.study.set_user_attr("exhausted", True)
                return self._end(self._table())
            self._add(OptunaState.WAITING, number, params, f"{self.id}-{number:02d}")
        trial, locks = self.study.ask(), ExitStack()
        locks.enter_context(self.locks.hold(trial.number))
        attrs = trial.user_attrs
        return Claimed(attrs["number"], attrs["point"], attrs["run"], trial, locks)

    def _ask(self, trials: list[Trial]) -> Params | None:
        params = call_plugin(self.backend.ask, self.spec, trials, self.seed)
        try:
            if params is not None:
                self.spec.check_point(params)
        except (TypeError, ValueError) as error:
            label = plugin_label(SWEEP_BACKENDS, type(self.backend))
            raise PluginError(f"{label}: ask() returned an invalid point: {error}") from None
        return params

    def report(self, claimed: Claimed, epoch: int, value: float) -> bool:
        """Report the metric after an epoch; return whether the trial must stop. Without a connection it continues."""

        def report() -> bool:
            if self.spec.early_terminate is None:
                return False
            claimed.trial.report(value, epoch)
            return claimed.trial.should_prune()

        try:
            claimed.pruned = self.storage.retry(report, _SHORT_PATIENCE_S)
        except StorageError:
            return False
        return claimed.pruned

    def finish(self, claimed: Claimed, value: float) -> None:
        """Record the value of a trial and release it. Raises StorageError if that is not possible; its run is kept."""

        def finish() -> None:
            state = self._state(claimed)
            if state is OptunaState.RUNNING:
                self._note_end(claimed)
                if claimed.pruned:
                    claimed.trial.set_user_attr("value", value)
                done = OptunaState.PRUNED if claimed.pruned else OptunaState.COMPLETE
                self.study.tell(claimed.trial.number, None if claimed.pruned else value, done)
            elif state is OptunaState.FAIL:  # another worker has taken this one for dead
                self._add(
                    OptunaState.COMPLETE, claimed.number, claimed.params, claimed.run, value, **self._end_of(claimed)
                )

        with claimed.locks:
            try:
                self._under_claim(finish)
            except StorageError as error:
                result = f"{self.spec.metric.name} {value:.4f}"
                raise StorageError(
                    f"cannot record the result of trial {claimed.number}, {result}: {error.message}",
                    f"its run is complete: {self.runs / claimed.run}\n"
                    f"then this command records it without training: {self.next_command('run')}",
                ) from None

    def fail(self, claimed: Claimed, cause: Cause, reason: str = "") -> None:
        """Record why a trial has no value, and release it."""

        def fail() -> None:
            if self._state(claimed) is OptunaState.RUNNING:
                self._note_end(claimed)
                claimed.trial.set_user_attr("cause", cause.value)
                claimed.trial.set_user_attr("reason", reason)
                self.study.tell(claimed.trial.number, state=OptunaState.FAIL)

        with claimed.locks:
            self._under_claim(fail, None if cause in (Cause.ERROR, Cause.INVALID) else _SHORT_PATIENCE_S)

    def stop(self) -> None:
        self.note("stopped", True)

    def resume(self) -> None:
        """Undo a stop. If the sweep ended by failures, its failed trials may be tried again."""
        for name in ("stopped", "exhausted"):
            if self.attr(name):
                self.note(name, False)
        table = self.storage.retry(self._table)
        end = self._end(table)
        if end and (end.state is SweepState.FAILED or not any(a.state.has_value for a in table.attempts)):
            self.note("since", len(table.attempts))

    def import_trial(
        self, number: int, params: Params, value: float | None, run: str, seconds: float, reason: str = ""
    ) -> None:
        """Record a trial that another scheduler assigned; a value of None is a failure with its reason."""
        failed = {"cause": Cause.ERROR.value, "reason": reason} if value is None else {}
        state = OptunaState.FAIL if value is None else OptunaState.COMPLETE
        self._under_claim(lambda: self._add(state, number, params, run, value, seconds=seconds, **failed))

    def _under_claim(self, operation: Callable[[], T], patience_s: float | None = None) -> T:
        def locked() -> T:
            with self.locks.claim():
                return operation()

        return self.storage.retry(locked, patience_s)

    def _add(
        self, state: OptunaState, number: int, params: Params, run: str, value: float | None = None, **attrs: Any
    ) -> None:
        attrs = {"number": number, "point": params, "run": run, **attrs}
        self.study.add_trial(create_trial(state=state, value=value, user_attrs=attrs))

    def _end_of(self, claimed: Claimed) -> dict[str, float]:
        """Return the duration and the position among ended attempts. Neither depends on the wall clock, which may jump."""
        trials = self.study.get_trials(deepcopy=False)
        return {"seconds": time.monotonic() - claimed.started, "ended": sum(t.state.is_finished() for t in trials)}

    def _note_end(self, claimed: Claimed) -> None:
        for name, value in self._end_of(claimed).items():
            claimed.trial.set_user_attr(name, value)

    def _state(self, claimed: Claimed) -> OptunaState:
        return self.study.get_trials(deepcopy=False)[claimed.trial.number].state

    def _table(self) -> AttemptTable:
        return AttemptTable(self.study.get_trials(deepcopy=False), self.study.user_attrs, self.spec.num_trials)

    def _table_without_stale(self) -> AttemptTable:
        """Fail the attempts of dead workers, which left no cause; return the table."""
        for trial in self.study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)):
            if not self.locks.is_held(trial.number):
                self.study.tell(trial.number, state=OptunaState.FAIL)
        return self._table()

    def _loss(self, value: float) -> float:
        return -value if self.spec.metric.goal == "maximize" else value

    def _end(self, table: AttemptTable) -> SweepStatus | None:
        """Return why no more trials are assigned, or None while there may be more."""
        if table.stopped:
            return SweepStatus(SweepState.STOPPED, f"it was stopped; resume it: {self.next_command('run')}")
        failures = table.consecutive_failures()
        if len(failures) >= MAX_CONSECUTIVE_FAILURES:
            message = f"{MAX_CONSECUTIVE_FAILURES} failures in a row, the last one: {failures[0].reason}"
            return SweepStatus(SweepState.FAILED, message)
        goal = self.spec.metric
        values = [a.value for a in table.attempts if a.state is TrialState.COMPLETE and a.value is not None]
        if goal.target is not None and any(self._loss(value) <= self._loss(goal.target) for value in values):
            return SweepStatus(SweepState.FINISHED, f"a trial reached the target, {goal.name} {goal.target}")
        if not self.backend.schedules_here or table.is_active or not table.exhausted or table.next_retry():
            return None
        points, message = self.spec.points(), "run_cap is reached" if table.run_cap_is_reached else "the search is over"
        if points is not None and len(table.by_trial) >= len(points):
            message = f"all {len(points)} points have been tried"
        return SweepStatus(SweepState.FINISHED, message)
