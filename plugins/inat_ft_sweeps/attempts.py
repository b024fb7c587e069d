"""The table of attempts: the state of every trial of a sweep, and which trial to run next.

A trial is one point of the space. It has one attempt, or several if the first ones failed or were interrupted. Each
attempt is a trial of the Optuna study; its user attributes hold the trial's number, parameters and run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile
from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from inat_ft_sweeps.space import Params

MAX_FAILURES = 2  # a trial that fails is tried once more
MAX_KILLED = 3  # a trial whose worker is killed this often counts as failed: it may be the reason


class TrialState(StrEnum):
    """The state of a trial, or of one attempt."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def has_value(self) -> bool:
        return self in (TrialState.COMPLETE, TrialState.PRUNED)


class Cause(StrEnum):
    """Why an attempt ended without a value. The first two are failures of the trial, the others interruptions."""

    ERROR = "error"  # the training failed; it is tried again once
    INVALID = "invalid"  # the settings cannot be trained; they are not tried again
    KILLED = "killed"  # the worker was killed: its lock is free, and it left no cause
    CANCELED = "canceled"  # the user stopped the worker
    UNAVAILABLE = "unavailable"  # data, weights, a disk or a database were missing: not the trial's fault


_REASONS = {Cause.KILLED: "its worker was killed", Cause.CANCELED: "its worker was stopped"}


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep with the outcome of its attempts, or one attempt."""

    number: int  # counted from 0
    state: TrialState
    params: Params
    value: float | None  # the sweep's metric; None without a result
    run: str  # name of the run directory
    reason: str = ""  # why it failed or was interrupted
    seconds: float | None = None
    attempts: int = 1
    cause: Cause | None = None
    id: int = 0  # number of the last attempt in the Optuna study
    ended: int = 0  # position among the attempts that have ended


def _read_attempt(frozen: FrozenTrial) -> Trial:
    attrs, cause = frozen.user_attrs, None
    wall = max(0.0, frozen.duration.total_seconds()) if frozen.duration else None  # of a killed attempt, or of 0.1.0
    if frozen.state is OptunaState.FAIL:
        cause = Cause(attrs.get("cause", Cause.KILLED))
        state = TrialState.FAILED if cause in (Cause.ERROR, Cause.INVALID) else TrialState.INTERRUPTED
    else:
        state = TrialState[frozen.state.name]
    value = attrs.get("value", frozen.value if frozen.values else None)
    return Trial(
        number=attrs["number"],
        state=state,
        params=attrs["point"],
        value=value if value is not None and math.isfinite(value) else None,
        run=attrs["run"],
        reason=(attrs.get("reason") or _REASONS.get(cause, "")) if cause else "",
        seconds=attrs.get("seconds", wall),
        cause=cause,
        id=frozen.number,
        ended=attrs.get("ended", frozen.number),
    )


class AttemptTable:
    """All attempts of a sweep, grouped by trial, and what its study notes about their end.

    notes: `since`: failures of earlier attempts do not count, because the user has run the sweep again; `stopped`: the
    user has stopped it; `exhausted`: its backend has no more points. limit: maximum number of trials.
    """

    def __init__(self, frozen: Iterable[FrozenTrial], notes: Mapping[str, Any], limit: int | None) -> None:
        self.attempts = [_read_attempt(each) for each in frozen]
        self.since: int = notes.get("since", 0)
        self.stopped = bool(notes.get("stopped"))
        self.by_trial: dict[int, list[Trial]] = {}
        for attempt in self.attempts:
            self.by_trial.setdefault(attempt.number, []).append(attempt)
        self.is_active = any(each.state in (TrialState.RUNNING, TrialState.WAITING) for each in self.attempts)
        self.run_cap_is_reached = limit is not None and len(self.by_trial) >= limit
        self.exhausted = bool(notes.get("exhausted")) or self.run_cap_is_reached

    def trials(self) -> list[Trial]:
        found = []
        for _, attempts in sorted(self.by_trial.items()):
            last = next((attempt for attempt in attempts if attempt.state.has_value), attempts[-1])
            seconds = [attempt.seconds for attempt in attempts if attempt.seconds is not None]
            found.append(replace(last, seconds=sum(seconds) if seconds else None, attempts=len(attempts)))
        return found

    def next_retry(self) -> Trial | None:
        """Return the last attempt of the first trial that must be run again, or that still waits for a worker."""
        for attempts in self.by_trial.values():
            last, has_value = attempts[-1], any(attempt.state.has_value for attempt in attempts)
            causes = [attempt.cause for attempt in attempts if attempt.id >= self.since]
            failures = causes.count(Cause.ERROR) + MAX_FAILURES * causes.count(Cause.INVALID)
            may_retry = failures < MAX_FAILURES and causes.count(Cause.KILLED) < MAX_KILLED
            if last.state is TrialState.WAITING or (last.cause is not None and not has_value and may_retry):
                return last
        return None

    def consecutive_failures(self) -> list[Trial]:
        """Return the failures since the last attempt that did not fail, the latest first."""
        ended = [a for a in self.attempts if a.id >= self.since and (a.state is TrialState.FAILED or a.state.has_value)]
        ended.sort(key=lambda attempt: attempt.ended, reverse=True)
        return list(takewhile(lambda attempt: attempt.state is TrialState.FAILED, ended))
