"""The table of attempts: the state of every trial of a sweep, and which trial to run next.

A trial is one point of the space. It has one attempt, or several if the first ones failed or were interrupted. Each
attempt is a trial of the Optuna study; its user attributes hold the trial's number, parameters and run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from inat_ft.sweeps.space import Params

MAX_FAILURES = 2
"""A trial that fails is tried once more."""
MAX_KILLED = 3
"""A trial whose worker is killed this often counts as failed: it may be the reason."""


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
        """Whether such a trial has a value: it is complete or pruned."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED)


class Cause(StrEnum):
    """Why an attempt ended without a value."""

    ERROR = "error"
    """The training failed. It is tried again once."""
    INVALID = "invalid"
    """The settings cannot be trained. They are not tried again."""
    KILLED = "killed"
    """The worker was killed; its lock is free, and it left no cause."""
    CANCELED = "canceled"
    """The user stopped the worker."""
    UNAVAILABLE = "unavailable"
    """Data, weights, a disk or a database were not available, which is not the trial's fault."""

    @property
    def is_failure(self) -> bool:
        """Whether the attempt counts as a failure of the trial, not as an interruption."""
        return self in (Cause.ERROR, Cause.INVALID)


_REASONS = {Cause.KILLED: "its worker was killed", Cause.CANCELED: "its worker was stopped"}


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep: the outcome of its attempts."""

    number: int
    """Counted from 0."""
    state: TrialState
    params: Params
    value: float | None
    """The sweep's metric; None without a result."""
    run: str
    """Name of the run directory."""
    reason: str = ""
    """Why it failed or was interrupted."""
    seconds: float | None = None
    attempts: int = 1


@dataclass(frozen=True)
class Attempt:
    """One attempt to run a trial."""

    id: int
    """Number in the Optuna study."""
    trial: int
    state: TrialState
    cause: Cause | None
    params: Params
    run: str
    value: float | None
    reason: str
    seconds: float | None
    ended: float
    """Timestamp; 0 for an attempt that has not ended."""

    @property
    def failed(self) -> bool:
        """Whether it counts as a failure of the trial."""
        return self.state is TrialState.FAILED


def _read(frozen: FrozenTrial) -> Attempt:
    attrs, cause = frozen.user_attrs, None
    state = {
        OptunaState.WAITING: TrialState.WAITING,
        OptunaState.RUNNING: TrialState.RUNNING,
        OptunaState.COMPLETE: TrialState.COMPLETE,
        OptunaState.PRUNED: TrialState.PRUNED,
        OptunaState.FAIL: TrialState.FAILED,
    }[frozen.state]
    if state is TrialState.FAILED:
        cause = Cause(attrs.get("cause", Cause.KILLED))
        state = TrialState.FAILED if cause.is_failure else TrialState.INTERRUPTED
    value = attrs.get("value", frozen.value if frozen.values else None)
    return Attempt(
        id=frozen.number,
        trial=attrs["number"],
        state=state,
        cause=cause,
        params=attrs["point"],
        run=attrs["run"],
        value=value if value is not None and math.isfinite(value) else None,
        reason=attrs.get("reason") or (_REASONS.get(cause, "") if cause else ""),
        seconds=attrs.get("seconds", frozen.duration.total_seconds() if frozen.duration else None),
        ended=frozen.datetime_complete.timestamp() if frozen.datetime_complete else 0.0,
    )


class AttemptTable:
    """All attempts of a sweep, grouped by trial, and what its study notes about their end.

    notes: `since`: failures of earlier attempts do not count, because the user has run the sweep again; `stopped`: the
    user has stopped it; `exhausted`: its backend has no more points.
    """

    def __init__(self, frozen: Iterable[FrozenTrial], notes: Mapping[str, Any]) -> None:
        self.attempts = [_read(each) for each in frozen]
        self.since: int = notes.get("since", 0)
        self.stopped, self.exhausted = bool(notes.get("stopped")), bool(notes.get("exhausted"))
        self.by_trial: dict[int, list[Attempt]] = {}
        for attempt in self.attempts:
            self.by_trial.setdefault(attempt.trial, []).append(attempt)

    def trials(self) -> list[Trial]:
        """Return all trials by number."""
        return [_outcome(attempts) for _, attempts in sorted(self.by_trial.items())]

    def is_active(self) -> bool:
        """Return whether an attempt is running or waits for a worker."""
        return any(attempt.state in (TrialState.RUNNING, TrialState.WAITING) for attempt in self.attempts)

    def next_retry(self) -> Attempt | None:
        """Return the last attempt of the first trial that must be run again, or that still waits for a worker."""
        for attempts in self.by_trial.values():
            last = attempts[-1]
            if last.state is TrialState.WAITING or (
                last.cause is not None and not any(a.state.has_value for a in attempts) and self._may_retry(attempts)
            ):
                return last
        return None

    def _may_retry(self, attempts: list[Attempt]) -> bool:
        causes = [attempt.cause for attempt in attempts if attempt.id >= self.since]
        failures = causes.count(Cause.ERROR) + MAX_FAILURES * causes.count(Cause.INVALID)
        return failures < MAX_FAILURES and causes.count(Cause.KILLED) < MAX_KILLED

    def consecutive_failures(self) -> list[Attempt]:
        """Return the failures since the last attempt that did not fail, the latest first."""
        ended = [a for a in self.attempts if a.id >= self.since and (a.failed or a.state.has_value)]
        ended.sort(key=lambda attempt: attempt.ended, reverse=True)
        return ended[: next((place for place, attempt in enumerate(ended) if not attempt.failed), len(ended))]


def _outcome(attempts: list[Attempt]) -> Trial:
    last = next((attempt for attempt in attempts if attempt.state.has_value), attempts[-1])
    seconds = [attempt.seconds for attempt in attempts if attempt.seconds is not None]
    return Trial(
        number=last.trial,
        state=last.state,
        params=last.params,
        value=last.value,
        run=last.run,
        reason=last.reason if last.cause else "",
        seconds=sum(seconds) if seconds else None,
        attempts=len(attempts),
    )
