"""The contract of a sweep backend, and the types that it shares with the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inat_ft.progress import Log
from inat_ft.registry import SWEEP_BACKENDS, call_plugin, get
from inat_ft.settings import Override

if TYPE_CHECKING:
    from inat_ft_sweeps.attempts import Trial
    from inat_ft_sweeps.space import Params, SweepSpec
    from inat_ft_sweeps.study import Sweep


class SweepState(StrEnum):
    """The state of a sweep. `WAITING`: nobody works on it."""

    FINISHED = "finished"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    WAITING = "waiting"


class SweepStatus(NamedTuple):
    """The state of a sweep, and a sentence that explains it."""

    state: SweepState
    message: str = ""


@dataclass(frozen=True)
class TrialJob:
    """What to train for a trial."""

    name: str  # of the run
    runs: Path  # folder for the run's directory
    overrides: Sequence[Override]
    report: Callable[[int, float], bool] = lambda epoch, value: False
    """Called with (epoch, metric) after each epoch; if it returns True, the trial stops there."""


Objective = Callable[[TrialJob], float]
"""Trains a trial; returns the sweep's metric."""


class SweepBackend:
    """Decides which points a sweep tries, and where the trials are scheduled. This class is the backend `local`.

    For a search method of your own, override `ask`. The sweep's folder, workers on several machines, retries, pruning
    and reports work as for the built-in method.

        class Sobol(SweepBackend):
            def ask(self, spec, trials, seed):
                return {"lr": ...}

    For another scheduler, override `run`, `stop`, and perhaps `create`, and set `schedules_here = False`: `run` then
    trains the trials itself and records each with `sweep.import_trial`.

    A backend has no state: a sweep may be run by several processes, each of which makes its own instance.
    """

    schedules_here: bool = True
    """Whether `ask` decides the points and the sweep's own workers train them."""

    def create(self, spec: SweepSpec, project: str | None, entity: str | None) -> str | None:
        """Register a new sweep at a server; return its address there, or None without a server."""
        return None

    def ask(self, spec: SweepSpec, trials: Sequence[Trial], seed: int) -> Params | None:
        """Return the point to try next, or None when the search is over.

        trials: all trials so far, by number, running ones included. The same arguments must give the same answer. The
        point has one value for each parameter of `spec.space(mode)`. It is called under the sweep's lock.
        """
        from inat_ft_sweeps.sampler import propose

        return propose(spec, trials, seed)

    def run(self, sweep: Sweep, objective: Objective, count: int | None, log: Log) -> SweepStatus:
        """Run trials in this process until `count` of them have ended, or the sweep has."""
        from inat_ft_sweeps.worker import run_worker

        return run_worker(sweep, objective, count, log)

    def stop(self, sweep: Sweep) -> None:
        """Stop the sweep at the server, if there is one."""


def load_backend(name: str) -> SweepBackend:
    """Return the sweep backend of that name. Raises ConfigError if it is unknown, PluginError if it is broken."""
    cls: type[SweepBackend] = get(SWEEP_BACKENDS, name).load()
    return call_plugin(cls)
