"""`inat-ft sweep`: many trainings from one file, on this machine, on many, or through W&B."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inat_ft.cli import options, render, sweep_show

if TYPE_CHECKING:
    from inat_ft.settings import Override
    from inat_ft.sweeps.choice import Confirmed
    from inat_ft.sweeps.local import Sweep, Trial
    from inat_ft.sweeps.worker import Objective

app = typer.Typer(
    name="sweep",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search for the best settings: create, run, status, best, report, list, stop.",
)

_WATCH_S = 2.0

SweepsDir = Annotated[Path, typer.Option("--sweeps-dir", envvar="INAT_FT_SWEEPS_DIR", help="Folder of the sweeps.")]
Id = Annotated[
    str | None,
    typer.Argument(metavar="ID", help="Of the sweep. May be left out where there is only one.", show_default=False),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="INAT_FT_SWEEP_STORAGE",
        help="PostgreSQL for workers on many machines: postgresql://user@host/database.",
        show_default=False,
    ),
]
Project = Annotated[
    str | None, typer.Option("--project", envvar="WANDB_PROJECT", help="W&B project.", show_default=False)
]
Entity = Annotated[
    str | None, typer.Option("--entity", envvar="WANDB_ENTITY", help="W&B user or team.", show_default=False)
]


@app.command()
def create(
    file: Annotated[
        Path | None, typer.Argument(help="Sweep in W&B's YAML. Default: the built-in one.", show_default=False)
    ] = None,
    backend: Annotated[Literal["local", "wandb"], typer.Option(help="Who gives out the trials.")] = "local",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Fix any key for all trials; may be repeated."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The sweep's ID. [default: eight letters]", show_default=False)
    ] = None,
    seed: options.Seed = 0,
    storage: Storage = None,
    project: Project = None,
    entity: Entity = None,
    json: options.Json = False,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Check a sweep's file, value by value, and make the sweep; nothing is trained yet.

    [dim]inat-ft sweep create[/dim]
    [dim]inat-ft sweep create sweep.yaml --set model.backbone=efficientnet_lite0[/dim]
    [dim]inat-ft sweep create sweep.yaml --backend wandb --project birds[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.settings import parse_override
    from inat_ft.sweeps import folder
    from inat_ft.sweeps.reading import read_spec

    if name is not None and not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"--name {name}: an ID is made of letters, digits, '-', '_' and '.'")
    spec = read_spec(file, [parse_override(text) for text in set_ or ()])
    path = None
    if backend == "wandb":
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
            "next": _next(sweep, sweeps_dir),
        }
        render.as_json(about)
        return
    for line in sweep_show.about_space(sweep):
        render.remark(line)
    if path:
        render.result(f"W&B:  {path}")
    render.result(f"id:   {sweep.id}")
    render.result(f"next: {_next(sweep, sweeps_dir)}")


def _next(sweep: "Sweep", sweeps_dir: Path) -> str:
    where = "" if sweeps_dir == Path("sweeps") else f" --sweeps-dir {sweeps_dir}"
    return f"inat-ft sweep run {sweep.id}{where}"


@app.command()
def run(
    id: Id = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Trials to run now. [default: all]", show_default=False)
    ] = None,
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
    from inat_ft.data.places import cache_folder
    from inat_ft.sweeps.worker import run_workers, work

    sweep = _open(id, sweeps_dir, storage, adopt=True)
    endless = sweep.spec.num_trials is None and sweep.wandb is None
    if endless and count is None:
        from inat_ft.errors import UsageError

        raise UsageError("nothing limits this sweep", "add run_cap to its file, or run with --count")
    sweep.go_on()
    _pin_split(sweep)
    if workers > 1:
        places = ["--sweeps-dir", str(sweeps_dir), *(["--cache-dir", str(cache_dir)] if cache_dir else [])]
        stored = ["--storage", storage] if storage else []
        code = run_workers([sweep.wandb or sweep.id, *places, *stored], workers, count)
        state, why = sweep.state()
        if code and state not in ("finished", "failed"):
            raise typer.Exit(code)
    elif sweep.wandb:
        from inat_ft.sweeps.wandb import run_agent

        state, why = run_agent(sweep, _objective(sweep, cache_folder(cache_dir)), count, render.remark)
    else:
        try:
            state, why = work(sweep, _objective(sweep, cache_folder(cache_dir)), count, render.remark)
        except KeyboardInterrupt:
            render.remark(f"interrupted; go on with: {_next(sweep, sweeps_dir)}")
            raise typer.Exit(130) from None
    sweep_show.show_end(sweep, state, why)


def _open(id: str | None, sweeps_dir: Path, storage: str | None, adopt: bool = False) -> "Sweep":
    """The sweep that was named, or the only one; adopt: take in a W&B sweep made elsewhere."""
    from inat_ft.errors import UsageError
    from inat_ft.sweeps import folder

    if id is None:
        return folder.open_sweep(folder.only_sweep(sweeps_dir), sweeps_dir, storage)
    name = id.rsplit("/", 1)[-1]
    if "/" in id and not (sweeps_dir / name / "sweep.json").exists():
        if not adopt or id.count("/") != 2:
            raise UsageError(f"no sweep '{id}' in {sweeps_dir}", "a W&B sweep is named ENTITY/PROJECT/ID")
        from inat_ft.sweeps.wandb import adopt_sweep

        return adopt_sweep(id, sweeps_dir)
    return folder.open_sweep(name, sweeps_dir, storage)


def _pin_split(sweep: "Sweep") -> None:
    """Note the split at the first run, so that a later one does not change the data under the sweep."""
    from inat_ft.data.manifest import find_manifest

    if "data.split" not in dict(sweep.spec.overrides({})) and not sweep.study.user_attrs.get("split"):
        sweep.study.set_user_attr("split", find_manifest().as_posix())


def _objective(sweep: "Sweep", cache: Path, *extra: "Override") -> "Objective":
    from inat_ft.sweeps.worker import training
    from inat_ft.training import Listener

    split = sweep.study.user_attrs.get("split")
    first = iter([render.remark])
    return training(
        sweep.spec.metric.name,
        cache,
        lambda config: Listener(say=next(first, lambda line: None), tick_for=render.progress),
        [*([("data.split", split)] if split else []), *extra],
    )


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
    sweep = _open(id, sweeps_dir, storage)
    if json:
        render.as_json(sweep_show.status_json(sweep))
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


@app.command()
def best(
    id: Id = None,
    top: Annotated[int, typer.Option(min=1, help="Trials to list.")] = 5,
    train: Annotated[bool, typer.Option("--train", help="Train the best settings as a run of its own.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Evaluate the best run on the test set: a deliberate act, and counted.")
    ] = False,
    confirm: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Train the top K again with other seeds.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Other seeds for --confirm.")] = 3,
    json: options.Json = False,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    runs_dir: options.RunsDir = Path("runs"),
    cache_dir: options.CacheDir = None,
) -> None:
    """The best trial, those that cannot be told from it on the same validation images, and the cheapest of them.

    [dim]inat-ft sweep best[/dim]
    [dim]inat-ft sweep best --confirm 3 --seeds 3[/dim]
    [dim]inat-ft sweep best --eval[/dim]
    """
    from inat_ft.sweeps.choice import choose

    sweep = _open(id, sweeps_dir, storage)
    choice = choose(sweep)
    repeats = _confirm(sweep, confirm, seeds, cache_dir) if confirm else []
    picked = repeats[0].trial if repeats else choice.candidates[0].trial
    directory = sweep.runs / picked.run
    if train:
        directory = _train(sweep, picked, runs_dir, cache_dir)
    accuracy = _evaluate(sweep, directory) if evaluate else None
    if json:
        render.as_json(sweep_show.best_json(sweep, choice, repeats, directory, accuracy))
        return
    sweep_show.show_choice(sweep, choice, top)
    if repeats:
        sweep_show.show_repeats(sweep, repeats)
    if train:
        render.result(f"trained: {directory}")
    if accuracy is not None:
        render.result(f"test accuracy of {directory}: {accuracy:.4f} (this look at the test set was counted)")
    else:
        render.remark(f"next: inat-ft sweep best {sweep.id} --eval")


def _confirm(sweep: "Sweep", top: int, seeds: int, cache_dir: Path | None) -> "list[Confirmed]":
    from inat_ft.data.places import cache_folder
    from inat_ft.sweeps.choice import confirm

    base = dict(sweep.spec.overrides({})).get("seed", 0)
    objectives = {n: _objective(sweep, cache_folder(cache_dir), ("seed", base + n)) for n in range(1, seeds + 1)}
    return confirm(sweep, top, seeds, objectives)


def _train(sweep: "Sweep", trial: "Trial", runs_dir: Path, cache_dir: Path | None) -> Path:
    from inat_ft.cli.listening import listener
    from inat_ft.data.places import cache_folder
    from inat_ft.settings import load_config
    from inat_ft.training import Places, train

    split = sweep.study.user_attrs.get("split")
    config = load_config(None, [*([("data.split", split)] if split else []), *sweep.spec.overrides(trial.point)])
    return train(config, Places(runs_dir, cache_folder(cache_dir)), listener(config))[1]


def _evaluate(sweep: "Sweep", directory: Path) -> float:
    from inat_ft.evaluation.evaluate import evaluate_run

    with render.progress("evaluating on test") as tick:
        found = evaluate_run(directory, "test", tick=tick)
    sweep.study.set_user_attr("evaluated", [*sweep.study.user_attrs.get("evaluated", []), directory.as_posix()])
    return found.evaluation.metrics["accuracy"].value


@app.command()
def report(
    id: Id = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page and its PNGs. [default: the sweep's own]", show_default=False),
    ] = None,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Write what the sweep has found as one HTML page and PNGs; the page needs no network."""
    from inat_ft.sweeps.report import write_report

    sweep = _open(id, sweeps_dir, storage)
    for file in write_report(sweep, out or sweep.folder / "report"):
        render.result(file.as_posix())


@app.command("list")
def list_(json: options.Json = False, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """The sweeps in the folder."""
    from inat_ft.sweeps.folder import list_sweeps

    found = list_sweeps(sweeps_dir)
    if json:
        render.as_json(found)
    else:
        rows = [(about["id"], about.get("wandb") or about.get("storage") or "local") for about in found]
        render.table("", ("sweep", "where"), rows)


@app.command()
def stop(id: Id = None, storage: Storage = None, sweeps_dir: SweepsDir = Path("sweeps")) -> None:
    """Give out no more trials; those that run are finished. `sweep run` goes on."""
    sweep = _open(id, sweeps_dir, storage)
    sweep.stop()
    if sweep.wandb:
        from inat_ft.sweeps.wandb import stop_sweep

        stop_sweep(sweep.wandb)
    render.result(f"stopped: {sweep.id}")
