"""Sweeps at W&B: its server decides the points, and its agent runs them here.

The outcomes are recorded in a local study too, so that `status`, `best` and `report` work without the server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from typing import Any

from inat_ft_sweeps.base import Objective, SweepBackend, SweepState, SweepStatus, TrialJob
from inat_ft_sweeps.space import MODE, SweepSpec, active, target
from inat_ft_sweeps.study import Sweep
from inat_ft_sweeps.worker import describe_error

from inat_ft.errors import InatFtError, UsageError
from inat_ft.progress import Log
from inat_ft.settings import expand_key
from inat_ft.text import pluralize
from inat_ft_wandb.tracker import patience, require_server

_STOPPED = "stopped from W&B's page"


class Wandb(SweepBackend):
    """Let W&B decide the points; each run is logged there."""

    schedules_here = False

    def create(self, spec: SweepSpec, project: str | None, entity: str | None) -> str:
        """Create the sweep; return `entity/project/id`. Raises within 5 s if the server or the key cannot be used."""
        _require_online()
        import wandb

        with redirect_stdout(sys.stderr):
            try:
                id = wandb.sweep(spec.to_wandb(), entity=entity, project=project)
            except wandb.Error as error:
                raise InatFtError(f"W&B refuses the sweep: {error}") from error
        return "/".join([os.environ.get("WANDB_ENTITY") or "", os.environ.get("WANDB_PROJECT") or "", id]).lstrip("/")

    def run(self, sweep: Sweep, objective: Objective, count: int | None, log: Log) -> SweepStatus:
        """Run W&B's agent, one run at a time: by itself it waits forever for a server that is lost."""
        _require_online()
        import wandb

        assert sweep.address is not None
        *place, id = sweep.address.split("/")
        entity, project = [None, None, *place][-2:]
        done = 0

        def run_one() -> None:
            nonlocal done
            done += 1
            _run_one(sweep, objective, log)

        while count is None or done < count:
            if sweep.attr("stopped"):
                return SweepStatus(SweepState.STOPPED, f"it was stopped; resume it: {sweep.next_command('run')}")
            before = done
            try:
                with redirect_stdout(sys.stderr):
                    wandb.agent(id, function=run_one, entity=entity, project=project, count=1)
                if done == before:
                    return SweepStatus(SweepState.WAITING, f"W&B has no more runs; {pluralize(done, 'run')} done")
                if (status := sweep.status()).state is SweepState.FAILED:
                    return status
                require_server()
            except (wandb.Error, InatFtError) as error:
                raise _lost(sweep, error, done) from error
        return SweepStatus(SweepState.WAITING, f"{pluralize(done, 'run')} done, as requested by --count")

    def stop(self, sweep: Sweep) -> None:
        """Stop the sweep at W&B. Raises InatFtError if W&B refuses."""
        _require_online()
        assert sweep.address is not None
        command = [sys.executable, "-m", "wandb", "sweep", "--stop", sweep.address]
        ran = subprocess.run(command, check=False, capture_output=True, encoding="utf-8")
        if ran.returncode:
            raise InatFtError(
                f"W&B did not stop {sweep.address}: {(ran.stderr or ran.stdout).strip().splitlines()[-1]}"
            )


def _run_one(sweep: Sweep, objective: Objective, log: Log) -> None:
    """Train the run that the agent has started, in its thread."""
    import wandb

    started = time.perf_counter()
    with redirect_stdout(sys.stderr):
        run = wandb.init(settings=wandb.Settings(**patience()))
    name, number, params = f"{sweep.id}-{run.id}", len(sweep.trials()), dict(_flat(dict(run.config)))
    try:
        chosen = {shown: (own, params[own]) for shown, own in _active(params).items()}
        params = {shown: value for shown, (own, value) in chosen.items() if own not in sweep.spec.fixed}
        overrides = [(expand_key(shown), value) for shown, (_, value) in chosen.items()]
        value = objective(TrialJob(name, sweep.runs, [*sweep.pinned, *overrides, ("track.wandb", "online")]))
    except Exception as error:
        stopped = type(error) is Exception and not error.args  # what the agent raises in this thread
        if stopped and (file := getattr(error, "crash_file", None)):
            file.unlink(missing_ok=True)
        reason = _STOPPED if stopped else describe_error(error)
        sweep.import_trial(number, params, None, name, time.perf_counter() - started, reason)
        log(f"run {run.id} was {reason}" if stopped else f"run {run.id} failed: {reason}")
        if not stopped and not isinstance(error, InatFtError):
            raise  # the agent prints the traceback
        run.finish(exit_code=1)
        return
    sweep.import_trial(number, params, value, name, time.perf_counter() - started)
    log(f"run {run.id}: {sweep.spec.metric.name} {value:.4f}")


def _lost(sweep: Sweep, error: Exception, done: int) -> InatFtError:
    message = error.message if isinstance(error, InatFtError) else str(error)
    return InatFtError(
        f"W&B assigns no more runs of {sweep.address}: {message}",
        f"{pluralize(done, 'run')} complete in {sweep.runs}; "
        f"upload what W&B missed: wandb sync --include-online {sweep.runs}/*/wandb/run-*\n"
        f"then resume the sweep: {sweep.next_command('run')}",
    )


def _require_online() -> None:
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        raise UsageError(
            f"WANDB_MODE={mode}: W&B sweeps need a server and have no offline mode",
            "run the same file without a server: inat-ft sweep create --backend local",
        )
    require_server()


def _active(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters that apply to the run's mode: W&B sends all of them to every run."""
    mode = next((str(value) for name, value in params.items() if target(name)[1] == MODE), None)
    return active(tuple(params), mode)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings under dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
