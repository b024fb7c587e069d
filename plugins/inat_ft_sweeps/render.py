"""What the commands of `inat-ft sweep` share: options, opening a sweep, training a trial, and output as tables and JSON."""

import gc
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import render
from inat_ft.progress import ignore_log
from inat_ft.tables import Table
from inat_ft.text import pluralize

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.settings import Override
    from inat_ft_sweeps.attempts import Trial
    from inat_ft_sweeps.base import Objective, SweepStatus
    from inat_ft_sweeps.study import Sweep

SweepsDir = Annotated[Path, typer.Option(envvar="INAT_FT_SWEEPS_DIR", help="Folder of the sweeps.")]
Id = Annotated[str | None, typer.Argument(metavar="ID", help="ID of the sweep; optional if there is only one.")]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="INAT_FT_SWEEP_STORAGE",
        help="PostgreSQL for workers on several machines: postgresql://user@host/database.",
    ),
]


def folder_options(cache_dir: Path | None = None, runs_dir: Path = Path("runs")) -> list[str]:
    """Return the user's --cache-dir and --runs-dir for a printed command, unless the environment sets them."""
    given = {"--cache-dir": cache_dir, "--runs-dir": None if runs_dir == Path("runs") else runs_dir}
    return [
        shlex.join([option, str(path)])
        for option, path in given.items()
        if path and os.environ.get(f"INAT_FT_{option[2:].upper().replace('-', '_')}") != str(path)
    ]


def open_sweep(id: str | None, sweeps_dir: Path, storage: str | None, adopt: bool = False) -> "Sweep":
    """Return the named sweep, or the only one. adopt: accept an existing W&B sweep, `ENTITY/PROJECT/ID`."""
    from inat_ft.errors import UsageError
    from inat_ft_sweeps import folder

    if id is None:
        return folder.open_sweep(folder.only_sweep(sweeps_dir), sweeps_dir, storage)
    name = id.rsplit("/", 1)[-1]
    if "/" in id and not (sweeps_dir / name / "sweep.json").exists():
        if not adopt or id.count("/") != 2:
            raise UsageError(f"no sweep '{id}' in {sweeps_dir}", "the name of a W&B sweep is ENTITY/PROJECT/ID")
        from inat_ft_sweeps.parsing import parse_spec

        any_spec = parse_spec(
            {"method": "random", "parameters": {"lr": {"min": 1e-9, "max": 1.0}}}
        )  # W&B knows its own
        return folder.create(any_spec, sweeps_dir, name, backend="wandb", address=id)
    return folder.open_sweep(name, sweeps_dir, storage)


def objective(sweep: "Sweep", cache: Path, *extra: "Override") -> "Objective":
    """Return the function that trains a trial. extra: settings for all trials. Only the first trial logs its setup."""
    from inat_ft.setup import TrainCallbacks
    from inat_ft_sweeps.objective import TrainingObjective

    first = iter([render.info])

    def callbacks(config: "RunConfig") -> TrainCallbacks:
        gc.freeze()  # the collection before the next trial skips the objects that are left
        return TrainCallbacks(log=next(first, ignore_log), progress=render.progress)

    return TrainingObjective(sweep.spec.metric.name, cache, callbacks, extra)


def created_json(sweep: "Sweep", skipped: dict[str, str]) -> dict[str, Any]:
    points = sweep.spec.points()
    return {
        "id": sweep.id,
        "points": None if points is None else len(points),
        "trials": sweep.spec.num_trials,
        "wandb": sweep.address if sweep.backend_name == "wandb" else None,
        "left_out": skipped,
        "next": sweep.next_command("run"),
        "backend": sweep.backend_name,
        "address": sweep.address,
    }


def show_created(sweep: "Sweep", skipped: dict[str, str]) -> None:
    _show_space(sweep)
    for strategy, reason in skipped.items():
        render.info(f"skipped: {strategy}: {reason}")
    backend = f"(backend {sweep.backend_name})"
    if sweep.address:
        render.info(f"the sweep is at {sweep.address} {backend}")
    else:
        place = sweep.storage.name if sweep.storage.transient else "this machine"
        wandb = "; to create it at W&B use --backend wandb" if sweep.backend_name == "local" else ""
        render.info(f"the sweep is on {place} {backend}{wandb}")
    if sweep.backend_name == "wandb":
        render.echo(f"W&B:  {sweep.address}")
    render.echo(f"id:   {sweep.id}")
    render.echo(f"next: {sweep.next_command('run')}")


def _show_space(sweep: "Sweep") -> None:
    spec, points = sweep.spec, sweep.spec.points()
    search = f"{spec.method}, {spec.metric.goal} {spec.metric.name}"
    if points is None:
        limit = pluralize(spec.run_cap, "trial") if spec.run_cap else "no run_cap: use `sweep run --count N`"
        render.info(f"{search}: {limit}")
        return
    number, trials = len(points), spec.num_trials or len(points)
    render.info(f"{search}: {pluralize(trials, 'trial')} of {pluralize(number, 'point')}")
    if 0 < (more := number - trials) <= number // 2:
        render.info(
            f"{pluralize(more, 'more trial')} (run_cap: {number}) would try every point; without "
            f"{'it' if more == 1 else 'them'} the best point is missed with a probability of up to {more / number:.1%}"
        )


def show_end(sweep: "Sweep", status: "SweepStatus", folders: Sequence[str] = ()) -> None:
    """Print how `sweep run` ended. Raises InatFtError for a sweep that failed."""
    from inat_ft_sweeps.attempts import TrialState
    from inat_ft_sweeps.base import SweepState

    for trial in () if status.state is SweepState.FAILED else sweep.trials():
        if trial.state is TrialState.FAILED:
            attempts = pluralize(trial.attempts, "attempt")
            render.info(f"failed after {attempts}: trial {trial.number}, {settings(trial)}: {trial.reason}")
    sweep.require_success(status, *folders)
    render.echo(": ".join(filter(None, status)))
    if best := sweep.best():
        render.echo(f"best: trial {best[0].number}, {sweep.spec.metric.name} {best[0].value:.4f}: {settings(best[0])}")
        render.info(f"next: {sweep.next_command('best', *folders)}, {sweep.next_command('report')}")


def status_json(sweep: "Sweep") -> dict[str, Any]:
    status, best = sweep.status(), sweep.best()
    return {
        "id": sweep.id,
        "state": status.state,
        "why": status.message,
        "metric": sweep.spec.metric.name,
        "goal": sweep.spec.metric.goal,
        "num_trials": sweep.spec.num_trials,
        "best": best[0].number if best else None,
        "fixed": sweep.spec.fixed,
        "trials": [
            {**trial_json(sweep, trial, "state", "seconds", "attempts"), "reason": trial.reason or None}
            for trial in sweep.trials()
        ],
    }


def trial_json(sweep: "Sweep", trial: "Trial", *more: str) -> dict[str, Any]:
    """Return a trial with the command that trains it. more: attributes to add."""
    shown = {name: getattr(trial, name) for name in ("number", "params", "value", *more)}
    return {**shown, "run": (sweep.runs / trial.run).as_posix(), "command": sweep.command(trial.params)}


def progress_json(id: str, sweeps_dir: Path) -> dict[str, Any]:
    """Return the state of a sweep in the folder, its number of trials and the best value; or why it is unknown."""
    from inat_ft.errors import InatFtError
    from inat_ft_sweeps.folder import open_sweep

    try:
        sweep = open_sweep(id, sweeps_dir)
        state, best, limit = sweep.status().state, sweep.best(), sweep.spec.num_trials
    except InatFtError as error:
        return {"state": f"unknown: {error.message}", "trials": "", "best": ""}
    done, value = _num_done(sweep.trials()), f"{best[0].value:.4f}" if best else ""
    return {"state": state, "trials": f"{done} of {limit}" if limit else str(done), "best": value}


def _num_done(trials: "Sequence[Trial]") -> int:
    return sum(trial.state.has_value or trial.state == "failed" for trial in trials)


def show_status(sweep: "Sweep") -> "SweepStatus":
    from inat_ft_sweeps.worker import format_value

    status, trials, best = sweep.status(), sweep.trials(), sweep.best()
    best_number = best[0].number if best else None
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        (
            trial.number,
            trial.state + (f", {trial.attempts} attempts" if trial.attempts > 1 else ""),
            *(format_value(trial.params.get(name, "")) for name in names),
            None if trial.value is None else f"{trial.value:.4f}{' best' * (trial.number == best_number)}",
            trial.seconds,
            trial.reason,
        )
        for trial in trials
    ]
    formats = dict.fromkeys(names, ">")
    columns = {"trial": "d", "state": "", **formats, sweep.spec.metric.name: "", "seconds": ".1f", "": ""}
    render.table(Table(columns, rows, f"sweep {sweep.id}: {', '.join(filter(None, status))}"), drop=("seconds",))
    render.echo(_progress(sweep, status, trials))
    if best:
        render.echo(f"best so far: trial {best_number}, {sweep.command(best[0].params)}")
    return status


def _progress(sweep: "Sweep", status: "SweepStatus", trials: "list[Trial]") -> str:
    counts, limit = Counter(trial.state for trial in trials), sweep.spec.num_trials
    shown = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no trial yet"
    if status.state == "finished" or not limit:
        return shown
    seconds = [trial.seconds for trial in trials if trial.state == "complete" and trial.seconds is not None]
    left = limit - _num_done(trials)
    if not seconds or not left:
        return f"{shown}, of {limit}"
    running = sum(trial.state == "running" for trial in trials)
    return f"{shown}, of {limit}; about {left * sum(seconds) / len(seconds) / max(1, running):,.0f} s left"


def settings(trial: "Trial") -> str:
    from inat_ft_sweeps.worker import format_params

    return format_params(trial.params)
