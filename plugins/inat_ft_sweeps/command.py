"""`inat-ft sweep`: train many settings from one file, on this machine, on several, or through W&B."""

import os
import re
import time
from pathlib import Path
from typing import Annotated

import typer

from inat_ft.cli import options, render
from inat_ft.cli.commands import HELP
from inat_ft.tables import Table
from inat_ft_sweeps import render as sweep_render
from inat_ft_sweeps.render import Id, Storage, SweepsDir, folder_options, objective, open_sweep

app = typer.Typer(
    name="sweep",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings=HELP,
    help="Search for the best settings: create, run, status, best, soup, report, list, stop.",
)

_WATCH_S = 2.0

Project = Annotated[str | None, typer.Option(envvar="WANDB_PROJECT", help="W&B project.")]
Entity = Annotated[str | None, typer.Option(envvar="WANDB_ENTITY", help="W&B user or team.")]


@app.command()
def create(
    file: Annotated[
        Path | None, typer.Argument(help="Sweep file in W&B's YAML format.", show_default="the built-in sweep")
    ] = None,
    strategies: Annotated[
        bool, typer.Option("--strategies", help="Without a file: sweep over all strategies, each in its search space.")
    ] = False,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Backend that proposes the trials: local, wandb, or a plugin.")
    ] = "local",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Fix a setting for all trials. Can be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="ID of the sweep.", show_default="eight random letters")] = None,
    seed: options.Seed = 0,
    storage: Storage = None,
    project: Project = None,
    entity: Entity = None,
    json: options.Json = False,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Validate a sweep file and create the sweep. Nothing is trained yet.

    [dim]inat-ft sweep create[/dim]
    [dim]inat-ft sweep create --strategies --set epochs=10[/dim]
    [dim]inat-ft sweep create sweep.yaml --set model.backbone=efficientnet_lite0[/dim]
    [dim]inat-ft sweep create sweep.yaml --backend wandb --project birds[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.settings import parse_override
    from inat_ft_sweeps.base import load_backend
    from inat_ft_sweeps.folder import create_checked
    from inat_ft_sweeps.parsing import BUILT_IN, read_spec, strategy_sweep

    if name is not None and not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UsageError(f"--name {name}: not a valid ID", "use letters, digits, '-', '_' and '.'")
    if file and strategies:
        raise UsageError(f"--strategies cannot be combined with a file (got {file})", "omit one of them")
    load_backend(backend)  # an unknown one is reported first
    raw, skipped = strategy_sweep() if strategies else (BUILT_IN, {})
    spec = read_spec(file, [parse_override(text) for text in set_ or ()], raw)
    sweep = create_checked(spec, sweeps_dir, name, seed, storage, backend, project, entity)
    shown = sweep_render.created_json(sweep, skipped)
    render.emit(json, shown, lambda: sweep_render.show_created(sweep, skipped))


@app.command()
def run(
    id: Id = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of trials to run now.", show_default="all")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Number of processes; they share the cores.")] = 1,
    storage: Storage = None,
    project: Project = None,
    entity: Entity = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    cache_dir: options.CacheDir = None,
) -> None:
    """Run trials until the sweep ends. Run it again after an interruption, or in several terminals at once.

    ENTITY/PROJECT/ID runs trials of an existing W&B sweep.

    [dim]inat-ft sweep run[/dim]
    [dim]inat-ft sweep run abcd2345 --workers 4 --count 8[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.paths import cache_folder
    from inat_ft.registry import call_plugin
    from inat_ft_sweeps.base import SweepState
    from inat_ft_sweeps.worker import is_child_worker, run_workers

    sweep = open_sweep(id, sweeps_dir, storage, adopt=True)
    if sweep.backend.schedules_here and sweep.spec.num_trials is None and count is None:
        raise UsageError("this sweep has no limit", "add run_cap to its file, or use --count")
    if not is_child_worker():
        sweep.resume()
        sweep.pin_split()
    if workers > 1:
        folders = ["--sweeps-dir", str(sweeps_dir), *(["--cache-dir", str(cache_dir)] if cache_dir else [])]
        if storage:  # in the environment, because every user of the machine can read command lines
            os.environ["INAT_FT_SWEEP_STORAGE"] = storage
        code = run_workers([sweep.id, *folders], workers, count)
        status = sweep.status()
        if code and status.state not in (SweepState.FINISHED, SweepState.FAILED):
            raise typer.Exit(code)
    else:
        try:
            status = call_plugin(
                sweep.backend.run, sweep, objective(sweep, cache_folder(cache_dir)), count, render.info
            )
        except KeyboardInterrupt:
            render.info(f"interrupted; resume it: {sweep.next_command('run', *folder_options(cache_dir))}")
            raise
    if not is_child_worker():
        sweep_render.show_end(sweep, status, folder_options(cache_dir))


@app.command()
def status(
    id: Id = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds until the sweep ends.")] = False,
    json: options.Json = False,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Show the progress of a sweep: every trial, the best so far, the time left.

    [dim]inat-ft sweep status --watch[/dim]
    """
    from inat_ft_sweeps.base import SweepState

    sweep = open_sweep(id, sweeps_dir, storage)
    if json:
        render.echo_json(sweep_render.status_json(sweep))
        return
    while watch:
        render.console().clear()
        if sweep_render.show_status(sweep).state not in (SweepState.RUNNING, SweepState.WAITING):
            return
        try:
            time.sleep(_WATCH_S)
        except KeyboardInterrupt:
            return
    sweep_render.show_status(sweep)


@app.command("list")
def list_(json: options.Json = False, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """List the sweeps in the folder."""
    from inat_ft_sweeps.folder import list_sweeps

    found = [{**about, **sweep_render.progress_json(about["id"], sweeps_dir)} for about in list_sweeps(sweeps_dir)]
    if json:
        render.echo_json(found)
    elif not found:
        render.info(f"no sweeps in {sweeps_dir}; create one: inat-ft sweep create")
    else:
        places = [each.get("address") or each.get("storage") or each.get("backend") for each in found]
        rows = [
            (each["id"], each["state"], each["trials"], each["best"], at)
            for each, at in zip(found, places, strict=True)
        ]
        columns = {"sweep": "", "state": "", "trials": ">", "best": ">", "where": ""}
        render.table(Table(columns, rows))


@app.command()
def stop(id: Id = None, storage: Storage = None, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """Stop the sweep after its running trials finish. `sweep run` resumes it."""
    from inat_ft.registry import call_plugin

    sweep = open_sweep(id, sweeps_dir, storage)
    sweep.stop()
    call_plugin(sweep.backend.stop, sweep)
    render.echo(f"stopped: {sweep.id}")
