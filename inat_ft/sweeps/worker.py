"""The worker of a sweep: it claims a trial, trains it, records the outcome, and claims the next."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from inat_ft.sweeps.attempts import Cause
from inat_ft.sweeps.base import Objective, SweepState, SweepStatus, TrialJob
from inat_ft.sweeps.study import Claimed, Sweep
from inat_ft.text import pluralize

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.records import Epoch, RunRecord
    from inat_ft.training import TrainCallbacks

_POLL_S = 0.5
_BUSY_S = 5.0
"""Interval at which a run is tried that another process is still training."""
_PARENT = "INAT_FT_SWEEP_PARENT"


def run_worker(sweep: Sweep, objective: Objective, count: int | None = None, log: Log = print) -> SweepStatus:
    """Run trials until `count` of them have ended or the sweep has.

    A failed trial is recorded, and the next free worker tries it once more. Errors that concern every trial, such as
    missing data or a full disk, are raised; the trial is then not used up.
    """
    parent = int(os.environ.get(_PARENT, "0"))
    done = 0
    while count is None or done < count:
        if parent and os.getppid() != parent:
            return SweepStatus(SweepState.WAITING, "the process that started this worker has ended")
        claimed = sweep.claim()
        if isinstance(claimed, Claimed):
            _run(sweep, objective, claimed, log)
            done += 1
        elif claimed is not None:
            return claimed
        else:
            time.sleep(_POLL_S)  # others run the last trials; if a worker dies, its trial is free
    return SweepStatus(SweepState.WAITING, f"{pluralize(done, 'trial')} done, as requested by --count")


def _run(sweep: Sweep, objective: Objective, claimed: Claimed, log: Log) -> None:
    pruned = False

    def report(epoch: int, value: float) -> bool:
        nonlocal pruned
        pruned = sweep.report(claimed, epoch, value)
        return pruned

    label = f"trial {claimed.number}: {format_params(claimed.params, ', ')}"
    job = TrialJob(claimed.run, sweep.runs, sweep.settings(claimed.params), report)
    try:
        value = _train(objective, job, label, log)
        if not math.isfinite(value):
            raise InatFtError(f"{sweep.spec.metric.name} is {value}")
    except Exception as error:
        reason = describe_error(error)
        if _concerns_every_trial(error, first=not sweep.best()):
            with suppress(StorageError):  # the trial is free without it, as after a kill
                sweep.fail(claimed, Cause.UNAVAILABLE, f"could not run: {reason}")
            raise
        sweep.fail(claimed, Cause.INVALID if isinstance(error, UsageError) else Cause.ERROR, reason)
        log(f"{label} failed: {reason}")
    except BaseException:
        with suppress(StorageError):
            sweep.fail(claimed, Cause.CANCELED)
        raise
    else:
        sweep.finish(claimed, value, pruned)
        seconds = time.monotonic() - claimed.started
        log(f"{label}: {sweep.spec.metric.name} {value:.4f}{' (pruned)' if pruned else ''}, {seconds:.1f} s")


def _train(objective: Objective, job: TrialJob, label: str, log: Log) -> float:
    """Run the objective; wait while another process trains the same run, since its worker was taken for dead."""
    waiting = False
    while True:
        try:
            return objective(job)
        except BusyError as error:
            if not waiting:
                log(f"{label}: {error.message}; waiting for it")
            waiting = True
            time.sleep(_BUSY_S)


def _concerns_every_trial(error: Exception, first: bool) -> bool:
    """Return whether an error is one of the machine or the data, which every trial would meet.

    first: no trial has succeeded yet; then missing weights or a broken plugin concern every trial too.
    """
    if isinstance(error, StorageError | DataError | OSError):
        return True
    return first and isinstance(error, UsageError | WeightsError | PluginError) and not isinstance(error, ConfigError)


def describe_error(error: BaseException) -> str:
    """Return what went wrong and what to do next, in one line."""
    if isinstance(error, InatFtError):
        return "; ".join([*error.message.splitlines(), *error.hint.splitlines()])
    file = getattr(error, "crash_file", None)
    return f"{type(error).__name__}: {error}".splitlines()[0] + (f" (traceback: {file})" if file else "")


def format_value(value: object) -> str:
    """Return a parameter's value for people: numbers with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_params(params: dict[str, object], separator: str = " ") -> str:
    """Return `lr=0.001 dropout=0.2`."""
    return separator.join(f"{name}={format_value(value)}" for name, value in params.items())


def metric_of(record: RunRecord, name: str) -> float:
    """Return the metric of a run's best epoch."""
    return _value(record.history[(record.best_epoch or 1) - 1], name)


def _value(epoch: Epoch, metric: str) -> float:
    value = getattr(epoch, metric)
    return math.nan if value is None else float(value)


def training_objective(
    metric: str, cache: Path, make_callbacks: Callable[[RunConfig], TrainCallbacks], extra: Sequence[Override] = ()
) -> Objective:
    """Return the objective that trains. An interrupted run is resumed from its last epoch."""

    def objective(job: TrialJob) -> float:
        from dataclasses import replace

        from inat_ft.training import Directories, release_memory, train

        config = load_config(None, [*job.overrides, *extra, ("name", job.name)])
        release_memory()
        callbacks = make_callbacks(config)

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
    """Run `inat-ft sweep run` in several processes that share the cores; return the highest exit code."""
    from inat_ft.threads import num_cores

    threads = str(max(1, num_cores() // number))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, _PARENT: str(os.getpid())}
    shares = [None if count is None else count // number + (place < count % number) for place in range(number)]
    children = []
    try:
        for place, share in enumerate(share for share in shares if share != 0):
            limit = [] if share is None else ["--count", str(share)]
            command = [sys.executable, "-m", "inat_ft", "sweep", "run", *arguments, *limit]
            children.append(subprocess.Popen(command, env=_with_device(environment, place)))
        return max(_exit_code(child.wait()) for child in children)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()


def is_child_worker() -> bool:
    """Return whether `run_workers` has started this process, and reports the end itself."""
    return _PARENT in os.environ


def _exit_code(status: int) -> int:
    return 128 - status if status < 0 else status


def _with_device(environment: dict[str, str], place: int) -> dict[str, str]:
    """Return the environment with one of the GPUs in CUDA_VISIBLE_DEVICES, if the user named several."""
    named = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    return {**environment, "CUDA_VISIBLE_DEVICES": named[place % len(named)]} if len(named) > 1 else environment
