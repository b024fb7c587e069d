"""`inat-ft sweep`: train many settings from one file, on this machine, on several, or through W&B."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inat_ft.cli import options, render, sweep_render, sweep_results
from inat_ft.cli.commands import HELP
from inat_ft.cli.sweep_options import Id, Storage, SweepsDir, folder_options, objective, open_sweep

if TYPE_CHECKING:
    from inat_ft.sweeps.space import SweepSpec
    from inat_ft.sweeps.study import Sweep

app = typer.Typer(
    name="sweep",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings=HELP,
    help="Search for the best settings: create, run, status, best, soup, report, list, stop.",
)

_WATCH_S = 2.0

Project = Annotated[
    str | None, typer.Option("--project", envvar="WANDB_PROJECT", help="W&B project.", show_default=False)
]
Entity = Annotated[
    str | None, typer.Option("--entity", envvar="WANDB_ENTITY", help="W&B user or team.", show_default=False)
]


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
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Fix a setting for all trials. Repeatable."),
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
    from inat_ft.registry import SWEEP_BACKENDS, plugin_errors
    from inat_ft.sweeps import folder
    from inat_ft.sweeps.base import load_backend
    from inat_ft.sweeps.preflight import check_models, require_split

    if name is not None and not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"--name {name}: an ID may have letters, digits, '-', '_' and '.'")
    scheduler = load_backend(backend)
    spec, skipped = _read(file, strategies, set_ or [])
    check_models(spec)
    if scheduler.schedules_here:
        require_split(spec)
    with plugin_errors(SWEEP_BACKENDS, type(scheduler), "create()"):
        address = scheduler.create(spec, project or spec.project, entity or spec.entity)
    id = name or (address.rsplit("/", 1)[-1] if address else folder.new_id())
    sweep = folder.create(spec, sweeps_dir, id, seed, storage, backend, address)
    if json:
        render.echo_json(sweep_render.created_json(sweep, skipped))
    else:
        sweep_render.show_created(sweep, skipped)


def _read(file: Path | None, strategies: bool, overrides: list[str]) -> "tuple[SweepSpec, dict[str, str]]":
    """Return the sweep, and why some strategies are not in it."""
    from inat_ft.errors import UsageError
    from inat_ft.settings import parse_override
    from inat_ft.sweeps.defaults import BUILT_IN, strategy_sweep
    from inat_ft.sweeps.parsing import read_spec

    if file and strategies:
        raise UsageError(f"--strategies cannot be combined with a file (got {file})", "omit one of them")
    raw, skipped = strategy_sweep() if strategies else (BUILT_IN, {})
    return read_spec(file, [parse_override(text) for text in overrides], raw), skipped


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
    from inat_ft.registry import SWEEP_BACKENDS, plugin_errors
    from inat_ft.sweeps.base import SweepState
    from inat_ft.sweeps.worker import is_child_worker, run_workers

    sweep = open_sweep(id, sweeps_dir, storage, adopt=True)
    if sweep.backend.schedules_here and sweep.spec.num_trials is None and count is None:
        raise UsageError("this sweep has no limit", "add run_cap to its file, or use --count")
    if not is_child_worker():
        sweep.resume()
        _pin_split(sweep)
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
            with plugin_errors(SWEEP_BACKENDS, type(sweep.backend), "run()"):
                status = sweep.backend.run(sweep, objective(sweep, cache_folder(cache_dir)), count, render.info)
        except KeyboardInterrupt:
            render.info(f"interrupted; resume it: {sweep.next_command('run', *folder_options(cache_dir))}")
            raise
    if not is_child_worker():
        sweep_render.show_end(sweep, status, folder_options(cache_dir))


def _pin_split(sweep: "Sweep") -> None:
    """Store the split of the first run, so that later runs use the same data."""
    from inat_ft.data.manifest import find_manifest

    if "data.split" not in dict(sweep.spec.overrides({})) and not sweep.attr("split"):
        sweep.note("split", find_manifest().as_posix())


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
    from inat_ft.sweeps.base import SweepState

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


app.command()(sweep_results.best)
app.command()(sweep_results.soup)
app.command()(sweep_results.report)


@app.command("list")
def list_(json: options.Json = False, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """List the sweeps in the folder."""
    from inat_ft.sweeps.folder import list_sweeps

    found = [{**about, **sweep_render.progress_json(about["id"], sweeps_dir)} for about in list_sweeps(sweeps_dir)]
    if json:
        render.echo_json(found)
    elif not found:
        render.info(f"no sweeps in {sweeps_dir}; create one: inat-ft sweep create")
    else:
        rows = [
            (
                *(sweep[key] for key in ("id", "state", "trials", "best")),
                sweep.get("address") or sweep.get("storage") or sweep.get("backend"),
            )
            for sweep in found
        ]
        render.table("", ("sweep", "state", "trials", "best", "where"), rows, right=("trials", "best"))


@app.command()
def stop(id: Id = None, storage: Storage = None, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """Stop the sweep after its running trials finish. `sweep run` resumes it."""
    from inat_ft.registry import SWEEP_BACKENDS, plugin_errors

    sweep = open_sweep(id, sweeps_dir, storage)
    sweep.stop()
    with plugin_errors(SWEEP_BACKENDS, type(sweep.backend), "stop()"):
        sweep.backend.stop(sweep)
    render.echo(f"stopped: {sweep.id}")
