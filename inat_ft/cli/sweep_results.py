"""The results of a sweep: `inat-ft sweep best`, `soup` and `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inat_ft.cli import options, render, sweep_render
from inat_ft.cli.sweep_options import Id, Storage, SweepsDir, folder_options, objective, open_sweep
from inat_ft.text import pluralize

if TYPE_CHECKING:
    from inat_ft.records import Evaluation
    from inat_ft.sweeps.attempts import Trial
    from inat_ft.sweeps.selection import Replication
    from inat_ft.sweeps.study import Sweep


def best(
    id: Id = None,
    top: Annotated[int, typer.Option(min=1, help="Trials to list.")] = 5,
    train: Annotated[bool, typer.Option("--train", help="Train the best settings as a separate run.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Evaluate the best run on the test set. Evaluations are counted.")
    ] = False,
    confirm: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Train the top K again with other seeds.", show_default=False)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Number of seeds for --confirm.", show_default="3")
    ] = None,
    json: options.Json = False,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    runs_dir: options.RunsDir = Path("runs"),
    cache_dir: options.CacheDir = None,
) -> None:
    """Show the best trial, those that are not significantly different on the validation images, and the cheapest of these.

    After --confirm, --train and --eval use the trial with the best mean over the new seeds.

    [dim]inat-ft sweep best[/dim]
    [dim]inat-ft sweep best --confirm 3 --seeds 3[/dim]
    [dim]inat-ft sweep best --eval[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.sweeps.selection import choose, replication

    if seeds is not None and confirm is None:
        raise UsageError(
            "--seeds requires --confirm: it is the number of seeds of each replication", "add: --confirm 3"
        )
    sweep = open_sweep(id, sweeps_dir, storage)
    selection = choose(sweep)
    repeats = _confirm(sweep, confirm, seeds or 3, cache_dir) if confirm else replication(sweep)
    taken = selection.of(repeats[0].trial.number) if repeats else selection.candidates[0]
    picked, directory = taken.trial, sweep.runs / taken.trial.run
    if train:
        directory = _train(sweep, picked, runs_dir, cache_dir)
    found = _evaluate(sweep, directory) if evaluate else None
    if json:
        render.echo_json(sweep_render.best_json(sweep, selection, taken, repeats, directory, found))
        return
    sweep_render.show_selection(sweep, selection, top)
    if repeats:
        sweep_render.show_replications(repeats)
    render.echo(f"best: {sweep.command(picked.params)}")
    if train:
        render.echo(f"trained: {directory}")
    if found is not None:
        accuracy = found.metrics["accuracy"].value
        render.echo(
            f"test accuracy of {directory}: {accuracy:.4f} (test set evaluated {pluralize(found.look or 1, 'time')})"
        )
    elif train:
        render.info(f"next: inat-ft eval {directory}")
    else:
        render.info(f"next: {sweep.next_command('best', *folder_options(cache_dir, runs_dir), '--eval')}")


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

    config = load_config(None, sweep.settings(trial.params))
    return train(config, Directories(runs_dir, cache_folder(cache_dir)), callbacks(config))[1]


def _evaluate(sweep: "Sweep", directory: Path) -> "Evaluation":
    from inat_ft.evaluation.evaluate import evaluate_run

    with render.progress("evaluating on test") as progress:
        found = evaluate_run(directory, "test", progress=progress)
    sweep.note("evaluated", [*sweep.attr("evaluated", []), directory.as_posix()])
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
    """Average the weights of runs (greedy soup): keep each run that does not lower the validation accuracy.

    The result is a run for `inat-ft eval`, `compare` and `export`.

    [dim]inat-ft sweep soup[/dim]
    """
    from inat_ft.paths import cache_folder
    from inat_ft.sweeps.soup import make_soup

    sweep = open_sweep(id, sweeps_dir, storage)
    with render.progress("averaging", "runs") as progress:
        made = make_soup(sweep, runs_dir, cache_folder(cache_dir), name, progress)
    if json:
        render.echo_json(sweep_render.soup_json(made))
    else:
        sweep_render.show_soup(made)


def report(
    id: Id = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page and its PNGs.", show_default="report/ in the sweep's folder"),
    ] = None,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Write a self-contained HTML report and PNG figures."""
    from inat_ft.sweeps.report import write_report

    sweep = open_sweep(id, sweeps_dir, storage)
    for file in write_report(sweep, out or sweep.folder / "report"):
        render.echo(file.as_posix())
