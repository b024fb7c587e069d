"""What a sweep has found: `inat-ft sweep best`, `soup` and `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inat_ft.cli import options, render
from inat_ft.cli import sweep_render as sweep_show
from inat_ft.cli.sweep_options import Id, Storage, SweepsDir, objective, open_sweep, where

if TYPE_CHECKING:
    from inat_ft.records import Evaluation
    from inat_ft.sweeps.selection import Replication
    from inat_ft.sweeps.study import Sweep, Trial


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
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Other seeds for --confirm.", show_default="3"),
    ] = None,
    json: options.Json = False,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    runs_dir: options.RunsDir = Path("runs"),
    cache_dir: options.CacheDir = None,
) -> None:
    """The best trial, those not significantly different from it on the same validation images, and the cheapest of them.

    After --confirm the best one is that with the best mean of the new seeds; it is what --train and --eval take.

    [dim]inat-ft sweep best[/dim]
    [dim]inat-ft sweep best --confirm 3 --seeds 3[/dim]
    [dim]inat-ft sweep best --eval[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.sweeps.selection import choose, replication

    if seeds is not None and confirm is None:
        raise UsageError("--seeds says with how many seeds --confirm repeats the best trials", "add: --confirm 3")
    sweep = open_sweep(id, sweeps_dir, storage)
    selection = choose(sweep)
    repeats = _confirm(sweep, confirm, seeds or 3, cache_dir) if confirm else replication(sweep)
    taken = selection.of(repeats[0].trial.number) if repeats else selection.candidates[0]
    picked, directory = taken.trial, sweep.runs / taken.trial.run
    if train:
        directory = _train(sweep, picked, runs_dir, cache_dir)
    found = _evaluate(sweep, directory) if evaluate else None
    if json:
        render.echo_json(sweep_show.best_json(sweep, selection, taken, repeats, directory, found))
        return
    sweep_show.show_choice(sweep, selection, top)
    if repeats:
        sweep_show.show_repeats(sweep, repeats)
    render.echo(f"best: {sweep.command(picked.point)}")
    if train:
        render.echo(f"trained: {directory}")
    if found is not None:
        accuracy = found.metrics["accuracy"].value
        render.echo(f"test accuracy of {directory}: {accuracy:.4f} (look number {found.look} at this test set)")
    elif train:
        render.info(f"next: inat-ft eval {directory}")
    else:
        render.info(f"next: inat-ft sweep best {sweep.id}{where(sweeps_dir)} --eval")


def _confirm(sweep: "Sweep", top: int, seeds: int, cache_dir: Path | None) -> "list[Replication]":
    from inat_ft.paths import cache_folder
    from inat_ft.sweeps.selection import replicate

    base = dict(sweep.spec.overrides({})).get("seed", 0)
    objectives = {n: objective(sweep, cache_folder(cache_dir), ("seed", base + n)) for n in range(1, seeds + 1)}
    return replicate(sweep, top, seeds, objectives)


def _train(sweep: "Sweep", trial: "Trial", runs_dir: Path, cache_dir: Path | None) -> Path:
    from inat_ft.cli.training_progress import callbacks
    from inat_ft.paths import cache_folder
    from inat_ft.settings import load_config
    from inat_ft.training import Directories, train

    config = load_config(None, sweep.settings(trial.point))
    return train(config, Directories(runs_dir, cache_folder(cache_dir)), callbacks(config))[1]


def _evaluate(sweep: "Sweep", directory: Path) -> "Evaluation":
    from inat_ft.evaluation.evaluate import evaluate_run

    with render.progress("evaluating on test") as progress:
        found = evaluate_run(directory, "test", progress=progress)
    sweep.study.set_user_attr("evaluated", [*sweep.study.user_attrs.get("evaluated", []), directory.as_posix()])
    return found.evaluation


def soup(
    id: Id = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.", show_default="ID-soup")] = None,
    json: options.Json = False,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    runs_dir: options.RunsDir = Path("runs"),
    cache_dir: options.CacheDir = None,
) -> None:
    """Average the weights of runs that share a start, the best first, each if validation accuracy does not fall.

    The result is a run like any other, for `inat-ft eval` and `compare`.

    [dim]inat-ft sweep soup[/dim]
    """
    from inat_ft.paths import cache_folder
    from inat_ft.sweeps.soup import make_soup

    sweep = open_sweep(id, sweeps_dir, storage)
    with render.progress("mixing", "runs") as progress:
        made = make_soup(sweep, runs_dir, cache_folder(cache_dir), name, progress)
    if json:
        render.echo_json(sweep_show.soup_json(made))
    else:
        sweep_show.show_soup(made)


def report(
    id: Id = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page and its PNGs.", show_default="the sweep's own"),
    ] = None,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Write what the sweep has found as one HTML page and PNGs; the page needs no network."""
    from inat_ft.sweeps.report import write_report

    sweep = open_sweep(id, sweeps_dir, storage)
    for file in write_report(sweep, out or sweep.folder / "report"):
        render.echo(file.as_posix())
