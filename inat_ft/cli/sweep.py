"""`inat-ft sweep`: many trainings from one file, on this machine, on many, or through W&B."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inat_ft.cli import options, render
from inat_ft.cli import sweep_render as sweep_show
from inat_ft.cli import sweep_results as sweep_found
from inat_ft.cli.commands import HELP
from inat_ft.cli.sweep_options import Id, Storage, SweepsDir, objective, open_sweep, where

if TYPE_CHECKING:
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
    file: Annotated[Path | None, typer.Argument(help="Sweep in W&B's YAML.", show_default="the built-in one")] = None,
    strategies: Annotated[
        bool, typer.Option("--strategies", help="Without a file: try every installed strategy, each in its own space.")
    ] = False,
    backend: Annotated[Literal["local", "wandb"], typer.Option(help="Who gives out the trials.")] = "local",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Fix any key for all trials; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The sweep's ID.", show_default="eight letters")] = None,
    seed: options.Seed = 0,
    storage: Storage = None,
    project: Project = None,
    entity: Entity = None,
    json: options.Json = False,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Check a sweep's file, value by value, and make the sweep; nothing is trained yet.

    [dim]inat-ft sweep create[/dim]
    [dim]inat-ft sweep create --strategies --set epochs=10[/dim]
    [dim]inat-ft sweep create sweep.yaml --set model.backbone=efficientnet_lite0[/dim]
    [dim]inat-ft sweep create sweep.yaml --backend wandb --project birds[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.settings import parse_override
    from inat_ft.sweeps import folder
    from inat_ft.sweeps.defaults import BUILT_IN, strategy_sweep
    from inat_ft.sweeps.parsing import read_spec
    from inat_ft.sweeps.preflight import check_models, require_split

    if name is not None and not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"--name {name}: an ID is made of letters, digits, '-', '_' and '.'")
    if file and strategies:
        raise UsageError(f"--strategies makes a sweep of its own, and {file} is one", "leave one of them out")
    raw, left_out = strategy_sweep() if strategies else (BUILT_IN, {})
    spec = read_spec(file, [parse_override(text) for text in set_ or ()], raw)
    check_models(spec)
    path = None
    if backend == "local":
        require_split(spec)
    else:
        from inat_ft.sweeps.wandb import create_sweep

        path = create_sweep(spec, project or spec.project, entity or spec.entity)
    sweep = folder.create(
        spec, sweeps_dir, name or (path.split("/")[-1] if path else folder.new_id()), seed, storage, path
    )
    points = spec.points()
    if json:
        number = None if points is None else len(points)
        about = {
            "id": sweep.id,
            "points": number,
            "trials": spec.num_trials,
            "wandb": path,
            "left_out": left_out,
            "next": _next(sweep, sweeps_dir),
        }
        render.echo_json(about)
        return
    for line in sweep_show.about_space(sweep):
        render.info(line)
    for strategy, why in left_out.items():
        render.info(f"left out: {strategy}: {why}")
    if path:
        render.echo(f"W&B:  {path}")
    render.echo(f"id:   {sweep.id}")
    render.echo(f"next: {_next(sweep, sweeps_dir)}")


def _next(sweep: "Sweep", sweeps_dir: Path) -> str:
    return f"inat-ft sweep run {sweep.id}{where(sweeps_dir)}"


@app.command()
def run(
    id: Id = None,
    count: Annotated[int | None, typer.Option(min=1, help="Trials to run now.", show_default="all")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share cores and trials.")] = 1,
    storage: Storage = None,
    project: Project = None,
    entity: Entity = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    cache_dir: options.CacheDir = None,
) -> None:
    """Run trials until the sweep is at its end. May be run again after whatever happened, on several terminals at once.

    ENTITY/PROJECT/ID runs trials of a W&B sweep made elsewhere.

    [dim]inat-ft sweep run[/dim]
    [dim]inat-ft sweep run abcd2345 --workers 4 --count 8[/dim]
    """
    from inat_ft.paths import cache_folder
    from inat_ft.sweeps.worker import is_child_worker, run_workers, work

    sweep = open_sweep(id, sweeps_dir, storage, adopt=True)
    endless = sweep.spec.num_trials is None and sweep.wandb is None
    if endless and count is None:
        from inat_ft.errors import UsageError

        raise UsageError("nothing limits this sweep", "add run_cap to its file, or run with --count")
    if not is_child_worker():
        sweep.resume()
        _pin_split(sweep)
    if workers > 1:
        directories = ["--sweeps-dir", str(sweeps_dir), *(["--cache-dir", str(cache_dir)] if cache_dir else [])]
        if storage:  # in the environment: command lines are visible to everyone on the machine
            os.environ["INAT_FT_SWEEP_STORAGE"] = storage
        code = run_workers([sweep.wandb or sweep.id, *directories], workers, count)
        state, why = sweep.state()
        if code and state not in ("finished", "failed"):
            raise typer.Exit(code)
    elif sweep.wandb:
        from inat_ft.sweeps.wandb import run_agent

        state, why = run_agent(sweep, objective(sweep, cache_folder(cache_dir)), count, render.info)
    else:
        try:
            state, why = work(sweep, objective(sweep, cache_folder(cache_dir)), count, render.info)
        except KeyboardInterrupt:
            render.info(f"interrupted; go on with: {_next(sweep, sweeps_dir)}")
            raise
    if not is_child_worker():
        sweep_show.show_end(sweep, state, why)


def _pin_split(sweep: "Sweep") -> None:
    """Note the split at the first run, so that a later one does not change the data under the sweep."""
    from inat_ft.data.manifest import find_manifest

    if "data.split" not in dict(sweep.spec.overrides({})) and not sweep.study.user_attrs.get("split"):
        sweep.study.set_user_attr("split", find_manifest().as_posix())


@app.command()
def status(
    id: Id = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew every two seconds until the sweep ends.")
    ] = False,
    json: options.Json = False,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """How far a sweep is: every trial, the best so far, the time left.

    [dim]inat-ft sweep status --watch[/dim]
    """
    sweep = open_sweep(id, sweeps_dir, storage)
    if json:
        render.echo_json(sweep_show.status_json(sweep))
        return
    while watch:
        render.console().clear()
        state, _ = sweep_show.show_status(sweep)
        if state not in ("running", "waiting"):
            return
        try:
            time.sleep(_WATCH_S)
        except KeyboardInterrupt:
            return
    sweep_show.show_status(sweep)


app.command()(sweep_found.best)
app.command()(sweep_found.soup)
app.command()(sweep_found.report)


@app.command("list")
def list_(json: options.Json = False, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """The sweeps in the folder."""
    from inat_ft.sweeps.folder import list_sweeps

    found = [{**about, **sweep_show.standing(about["id"], sweeps_dir)} for about in list_sweeps(sweeps_dir)]
    if json:
        render.echo_json(found)
    elif not found:
        render.info(f"there is no sweep in {sweeps_dir}; make one: inat-ft sweep create")
    else:
        rows = [
            (
                each["id"],
                each["state"],
                each["trials"],
                each["best"],
                each.get("wandb") or each.get("storage") or "local",
            )
            for each in found
        ]
        render.table("", ("sweep", "state", "trials", "best", "where"), rows, right=("trials", "best"))


@app.command()
def stop(id: Id = None, storage: Storage = None, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """Give out no more trials; those that run are finished. `sweep run` goes on."""
    sweep = open_sweep(id, sweeps_dir, storage)
    sweep.stop()
    if sweep.wandb:
        from inat_ft.sweeps.wandb import stop_sweep

        stop_sweep(sweep.wandb)
    render.echo(f"stopped: {sweep.id}")
