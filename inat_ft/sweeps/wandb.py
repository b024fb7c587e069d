"""Sweeps that W&B gives out: `wandb.sweep` and `wandb.agent`, with the outcomes kept here as well.

What was run on this machine stands in the same kind of study as a local sweep's, so that status, best and report work
alike, and go on working when the server is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from inat_ft.errors import InatFtError, UsageError
from inat_ft.progress import Log
from inat_ft.settings import expand_key
from inat_ft.sweeps import folder
from inat_ft.sweeps import study as local
from inat_ft.sweeps.conditional import MODE, active, target
from inat_ft.sweeps.parsing import parse_spec
from inat_ft.sweeps.space import SweepSpec
from inat_ft.sweeps.worker import Objective, TrialJob, why
from inat_ft.tracking.wandb import patience, require_server


def _require_online() -> None:
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        raise UsageError(
            f"WANDB_MODE={mode}: W&B's sweeps need its server, they have no offline mode",
            "the same file without a server: inat-ft sweep create --backend local",
        )
    require_server()


def create_sweep(spec: SweepSpec, project: str | None, entity: str | None) -> str:
    """Make the sweep at W&B; returns `entity/project/id`. Raises within 5 s when the server or the key is no good."""
    _require_online()
    import wandb

    with redirect_stdout(sys.stderr):
        try:
            id = wandb.sweep(spec.to_wandb(), entity=entity, project=project)
        except wandb.Error as error:
            raise InatFtError(f"W&B refuses the sweep: {error}") from error
    return "/".join([os.environ.get("WANDB_ENTITY") or "", os.environ.get("WANDB_PROJECT") or "", id]).lstrip("/")


def adopt_sweep(path: str, sweeps: Path) -> local.Sweep:
    """Take in a sweep made elsewhere, `entity/project/id`; its space stays with W&B, and here has no end."""
    unknown = parse_spec({"method": "random", "parameters": {"lr": {"min": 1e-9, "max": 1.0}}})
    return folder.create(unknown, sweeps, path.rsplit("/", 1)[-1], wandb=path)


def run_agent(sweep: local.Sweep, objective: Objective, count: int | None, log: Log) -> tuple[str, str]:
    """Run the trials that W&B gives out until it has no more, or `count` are done; returns the sweep's state and why."""
    _require_online()
    import wandb

    assert sweep.wandb is not None
    *place, id = sweep.wandb.split("/")
    done: list[str] = []

    def run_one() -> None:
        started = time.perf_counter()
        with redirect_stdout(sys.stderr):
            run = wandb.init(settings=wandb.Settings(**patience()))
        name, number, point = f"{sweep.id}-{run.id}", len(sweep.trials()), dict(_flat(dict(run.config)))
        done.append(name)
        try:
            chosen = {shown: (own, point[own]) for shown, own in _counting(point).items()}
            point = {shown: value for shown, (own, value) in chosen.items() if own not in sweep.spec.fixed}
            overrides = [(expand_key(shown), value) for shown, (_, value) in chosen.items()]
            job = TrialJob(
                name, sweep.runs, [*sweep.pinned, *overrides, ("track.wandb", "online")], lambda epoch, value: False
            )
            value = objective(job)
        except Exception as error:
            reason = why(error) if str(error) else "stopped by W&B"
            sweep.import_trial(number, point, None, name, time.perf_counter() - started, reason)
            log(f"run {run.id} failed: {reason}")
            if not isinstance(error, InatFtError):
                raise  # the agent tells where it comes from, or has thrown it itself to end the run
            run.finish(exit_code=1)
            return
        sweep.import_trial(number, point, value, name, time.perf_counter() - started)
        log(f"run {run.id}: {sweep.spec.metric.name} {value:.4f}")

    entity, project = [None, None, *place][-2:]
    while count is None or len(done) < count:
        if sweep.study.user_attrs.get("stopped"):
            return "stopped", "it was stopped; `sweep run` goes on"
        before = len(done)
        try:  # one run at a time: the agent would wait for ever for a server that was lost
            with redirect_stdout(sys.stderr):
                wandb.agent(id, function=run_one, entity=entity, project=project, count=1)
            if len(done) == before:
                return "waiting", f"W&B has no more runs to give out; {len(done)} were run now"
            if _consecutive_failures(sweep) >= local.FAILURES_IN_A_ROW:
                return "failed", f"{local.FAILURES_IN_A_ROW} failures in a row: {sweep.trials()[-1].reason}"
            require_server()
        except (wandb.Error, InatFtError) as error:
            message = error.message if isinstance(error, InatFtError) else str(error)
            raise InatFtError(
                f"W&B gives out no more trials of {sweep.wandb}: {message}",
                f"{len(done)} {'run is' if len(done) == 1 else 'runs are'} complete and kept in {sweep.runs}; "
                f"send what W&B missed: wandb sync --include-online {sweep.runs}/*/wandb/run-*\n"
                f"then: inat-ft sweep run {sweep.id}",
            ) from error
    return "waiting", f"{len(done)} {'run is' if len(done) == 1 else 'runs are'} done, as asked"


def _counting(point: Mapping[str, Any]) -> dict[str, str]:
    """W&B gives out all values to every run: those that count for its mode, by the name of the key that each sets."""
    mode = next((str(value) for name, value in point.items() if target(name)[1] == MODE), None)
    return active(tuple(point), mode)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _consecutive_failures(sweep: local.Sweep) -> int:
    states = [trial.state for trial in reversed(sweep.trials())]
    return next((place for place, state in enumerate(states) if state != "failed"), len(states))


def stop_sweep(path: str) -> None:
    """Tell W&B to give out no more trials. Raises InatFtError when it does not take it."""
    _require_online()
    asked = subprocess.run(
        [sys.executable, "-m", "wandb", "sweep", "--stop", path], check=False, capture_output=True, text=True
    )
    if asked.returncode:
        raise InatFtError(f"W&B did not stop {path}: {(asked.stderr or asked.stdout).strip().splitlines()[-1]}")
