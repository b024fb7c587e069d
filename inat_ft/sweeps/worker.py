"""The worker of a sweep: claims a trial, trains it, records what came of it, and claims the next."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inat_ft.errors import (
    BusyError,
    ConfigError,
    DataError,
    InatFtError,
    PluginError,
    StorageError,
    UsageError,
    WeightsError,
)
from inat_ft.progress import Log
from inat_ft.settings import Override, load_config
from inat_ft.sweeps.study import Claimed, Sweep, short

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.records import Epoch, RunRecord
    from inat_ft.training import TrainCallbacks

_POLL_S = 0.5
_PARENT = "INAT_FT_SWEEP_PARENT"


@dataclass(frozen=True)
class TrialJob:
    """What a trial asks for."""

    name: str
    """Of the run."""
    runs: Path
    """Where the run's directory goes."""
    overrides: Sequence[Override]
    report: Callable[[int, float], bool]
    """Called with (epoch, metric) after each epoch; True ends the trial there."""


Objective = Callable[[TrialJob], float]
"""Runs a trial; returns the metric that the sweep is after."""


def work(sweep: Sweep, objective: Objective, count: int | None = None, log: Log = print) -> tuple[str, str]:
    """Run trials until `count` of them are done or the sweep has ended; returns its state and why.

    A trial that fails is recorded and retried once by whoever claims next. Raises what the very first trials fail with
    when it is no matter of their point: data or weights that are missing.
    """
    parent = int(os.environ.get(_PARENT, "0"))
    done = 0
    while count is None or done < count:
        if parent and os.getppid() != parent:
            return "waiting", "the process that started this worker has gone"
        claimed = sweep.claim()
        if claimed is None:
            time.sleep(_POLL_S)  # others run the last trials; should one of them die, its trial is for us
        elif isinstance(claimed, tuple):
            return claimed
        else:
            _run(sweep, objective, claimed, log)
            done += 1
    return "waiting", f"{done} {'trial is' if done == 1 else 'trials are'} done, as asked"


def _run(sweep: Sweep, objective: Objective, claimed: Claimed, log: Log) -> None:
    pruned = False

    def report(epoch: int, value: float) -> bool:
        nonlocal pruned
        pruned = sweep.report(claimed, epoch, value)
        return pruned

    started = time.perf_counter()
    shown = f"trial {claimed.number}: {', '.join(f'{name}={short(v)}' for name, v in claimed.point.items())}"
    try:
        value = objective(TrialJob(claimed.run, sweep.runs, sweep.settings(claimed.point), report))
        if not math.isfinite(value):
            raise InatFtError(f"{sweep.spec.metric.name} is {value}")
    except BaseException as error:
        if isinstance(error, BusyError):
            sweep.requeue(claimed, why(error))
            time.sleep(_POLL_S)
            return
        if not isinstance(error, Exception):
            sweep.requeue(claimed, "by its user")
            raise
        if _concerns_every_trial(error, not sweep.best()):
            sweep.requeue(claimed, f"could not run: {why(error)}")
            raise
        reason = why(error)
        sweep.fail(claimed, reason, for_good=isinstance(error, UsageError))
        log(f"{shown} failed: {reason}")
    else:
        sweep.finish(claimed, value, pruned)
        ended = " (pruned)" if pruned else ""
        log(f"{shown}: {sweep.spec.metric.name} {value:.4f}{ended}, {time.perf_counter() - started:.1f} s")


def _concerns_every_trial(error: Exception, is_main_process: bool) -> bool:
    """Return whether a failure is one of the machine or the data, which any other trial would meet as well.

    is_first: no trial has succeeded yet, so that missing weights or a broken plugin are not a matter of the point either.
    """
    if isinstance(error, StorageError | DataError | OSError):
        return True
    return (
        is_main_process
        and isinstance(error, UsageError | WeightsError | PluginError)
        and not isinstance(error, ConfigError)
    )


def why(error: BaseException) -> str:
    """What went wrong and what to do about it, in one line."""
    if isinstance(error, InatFtError):
        return "; ".join([*error.message.splitlines(), *error.hint.splitlines()])
    file = getattr(error, "crash_file", None)
    return f"{type(error).__name__}: {error}".splitlines()[0] + (f" (traceback: {file})" if file else "")


def metric_of(record: RunRecord, name: str) -> float:
    """The metric of a run's best epoch."""
    return _value(record.history[(record.best_epoch or 1) - 1], name)


def _value(epoch: Epoch, metric: str) -> float:
    value = getattr(epoch, metric)
    return math.nan if value is None else float(value)


def training(
    metric: str, cache: Path, listener_for: Callable[[RunConfig], TrainCallbacks], extra: Sequence[Override] = ()
) -> Objective:
    """The objective that trains. A run that was interrupted goes on from its last epoch."""

    def objective(job: TrialJob) -> float:
        from dataclasses import replace

        from inat_ft.training import Directories, release_memory, train

        config = load_config(None, [*job.overrides, *extra, ("name", job.name)])
        release_memory()
        callbacks = listener_for(config)

        def on_epoch(epoch: Epoch) -> bool:
            callbacks.on_epoch(epoch)
            return job.report(epoch.epoch, _value(epoch, metric))

        directory = job.runs / job.name
        record, _ = train(
            config,
            Directories(job.runs, cache),
            replace(callbacks, on_epoch=on_epoch),
            resume=directory if directory.is_dir() else None,
        )
        return metric_of(record, metric)

    return objective


def run_workers(arguments: Sequence[str], number: int, count: int | None) -> int:
    """Run `inat-ft sweep run` in several processes, which share cores and trials; returns the worst exit code."""
    from inat_ft.threads import num_cores

    threads = str(max(1, num_cores() // number))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, _PARENT: str(os.getpid())}
    shares = [None if count is None else count // number + (place < count % number) for place in range(number)]
    children = []
    try:
        for place, share in enumerate(share for share in shares if share != 0):
            pluralize = [] if share is None else ["--count", str(share)]
            devices = _device(environment, place)
            command = [sys.executable, "-m", "inat_ft", "sweep", "run", *arguments, *pluralize]
            children.append(subprocess.Popen(command, env=devices))
        return max(_exit_code(child.wait()) for child in children)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()


def is_child_worker() -> bool:
    """Whether this process is a worker that `run_workers` has started, which tells the end itself."""
    return _PARENT in os.environ


def _exit_code(status: int) -> int:
    return 128 - status if status < 0 else status


def _device(environment: dict[str, str], place: int) -> dict[str, str]:
    """Each worker sees one GPU, in turn, where the user named several."""
    named = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    return {**environment, "CUDA_VISIBLE_DEVICES": named[place % len(named)]} if len(named) > 1 else environment
