"""The worker of a sweep: it claims a trial, trains it, records the outcome, and claims the next."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from inat_ft import errors
from inat_ft.errors import InatFtError, StorageError, UsageError
from inat_ft.progress import Log, ignore_log
from inat_ft.text import pluralize
from inat_ft.threads import num_cores
from inat_ft_sweeps.attempts import Cause
from inat_ft_sweeps.base import Objective, SweepState, SweepStatus, TrialJob
from inat_ft_sweeps.objective import TrainingObjective
from inat_ft_sweeps.study import Claimed, Sweep

_POLL_S = 0.5
_BUSY_S = 5.0  # interval at which a run is tried that another process is still training
_PARENT = "INAT_FT_SWEEP_PARENT"
_WORKERS = "INAT_FT_SWEEP_WORKERS"
_FEW_TOGETHER, _MOST_TOGETHER = 4, 32
_NEARLY_ALL = 0.75
_SURROUNDINGS = (StorageError, errors.DataError, OSError)
"""Errors of the machine or the data, which every trial would meet. They do not count as a failure of the trial."""


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
            group = _claim_more(sweep, objective, claimed, None if count is None else count - done)
            _run(sweep, objective, group, log)
            done += len(group)
        elif claimed is not None:
            return claimed
        else:
            time.sleep(_POLL_S)  # others run the last trials; if a worker dies, its trial is free
    return SweepStatus(SweepState.WAITING, f"{pluralize(done, 'trial')} done, as requested by --count")


def _claim_more(sweep: Sweep, objective: Objective, first: Claimed, left: int | None) -> list[Claimed]:
    """Return the first trial and others that can be trained in the same steps, at most `left` in all."""
    group, most = [first], _group_size(sweep) if isinstance(objective, TrainingObjective) else 1
    while len(group) < min(most, left or most) and objective.joins(_job(sweep, group[-1])):  # type: ignore[attr-defined]  # else `most` is 1
        claimed = sweep.claim()
        if not isinstance(claimed, Claimed):
            break
        group.append(claimed)
    return group


def _group_size(sweep: Sweep) -> int:
    """Return how many points are chosen at once.

    A Bayesian search learns from earlier trials, so it chooses few at once, unless the sweep tries nearly all points anyway.
    Trials that may be pruned run one at a time.
    """
    spec, number = sweep.spec, int(os.environ.get(_WORKERS, "1"))
    if spec.early_terminate is not None:
        return 1
    points, limit = spec.points(), spec.num_trials or _MOST_TOGETHER
    learns = spec.method == "bayes" and (points is None or limit < _NEARLY_ALL * len(points))
    return _FEW_TOGETHER if learns else max(1, min(_MOST_TOGETHER, -(-limit // number)))


def _job(sweep: Sweep, claimed: Claimed) -> TrialJob:
    return TrialJob(claimed.run, sweep.runs, sweep.settings(claimed.params), partial(sweep.report, claimed))


def _run(sweep: Sweep, objective: Objective, group: Sequence[Claimed], log: Log) -> None:
    """Train trials and record their outcomes. An error that concerns every trial is raised after all are recorded."""
    jobs = [_job(sweep, claimed) for claimed in group]
    try:
        if isinstance(objective, TrainingObjective) and len(jobs) > 1:
            outcomes = objective.together(jobs)
        else:
            outcomes = [_outcome(objective, job, log) for job in jobs]
        outcomes = [
            _outcome(objective, job, log) if isinstance(outcome, errors.BusyError) else outcome
            for job, outcome in zip(jobs, outcomes, strict=True)
        ]
    except BaseException:
        for claimed in group:
            with suppress(StorageError, OSError):
                sweep.fail(claimed, Cause.CANCELED)
        raise
    raised = [_record(sweep, claimed, outcome, log) for claimed, outcome in zip(group, outcomes, strict=True)]
    if shared := next(filter(None, raised), None):
        raise shared


def _record(sweep: Sweep, claimed: Claimed, outcome: float | Exception, log: Log) -> Exception | None:
    label, metric = f"trial {claimed.number}: {format_params(claimed.params, ', ')}", sweep.spec.metric.name
    if isinstance(outcome, float) and not math.isfinite(outcome):
        outcome = InatFtError(f"{metric} is {outcome}")
    if isinstance(outcome, float):
        sweep.finish(claimed, outcome)
        seconds = time.monotonic() - claimed.started
        log(f"{label}: {metric} {outcome:.4f}{' (pruned)' if claimed.pruned else ''}, {seconds:.1f} s")
        return None
    reason = describe_error(outcome)
    # Without a complete trial, missing weights or a broken plugin concern every trial too.
    shared = _SURROUNDINGS if sweep.best() else (*_SURROUNDINGS, UsageError, errors.WeightsError, errors.PluginError)
    if isinstance(outcome, shared) and not isinstance(outcome, errors.ConfigError):
        with suppress(StorageError, OSError):  # the trial is free without it, as after a kill
            sweep.fail(claimed, Cause.UNAVAILABLE, f"could not run: {reason}")
        return outcome
    sweep.fail(claimed, Cause.INVALID if isinstance(outcome, UsageError) else Cause.ERROR, reason)
    log(f"{label} failed: {reason}")
    return None


def _outcome(objective: Objective, job: TrialJob, log: Log) -> float | Exception:
    """Run the objective; wait while another process trains the same run, since its worker was taken for dead."""
    while True:
        try:
            return float(objective(job))
        except errors.BusyError as error:
            log(f"{job.name}: {error.message}; waiting for it")
            log = ignore_log
            time.sleep(_BUSY_S)
        except Exception as error:
            return error


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


def run_workers(arguments: Sequence[str], number: int, count: int | None) -> int:
    """Run `inat-ft sweep run` in processes that share the cores and the named GPUs; return the highest exit code."""
    threads = str(max(1, num_cores() // number))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        _PARENT: str(os.getpid()),
        _WORKERS: str(number),
    }
    devices = _gpus()
    shares = [None if count is None else count // number + (place < count % number) for place in range(number)]
    children = []
    try:
        for place, share in enumerate(share for share in shares if share != 0):
            if len(devices) > 1:
                environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
            limit = [] if share is None else ["--count", str(share)]
            command = [sys.executable, "-m", "inat_ft", "sweep", "run", *arguments, *limit]
            children.append(subprocess.Popen(command, env=environment))
        statuses = [child.wait() for child in children]
        return max(128 - status if status < 0 else status for status in statuses)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()


def _gpus() -> list[str]:
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in named.split(",") if device]
    if not shutil.which("nvidia-smi"):
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def is_child_worker() -> bool:
    """Return whether `run_workers` has started this process, and reports the end itself."""
    return _PARENT in os.environ
