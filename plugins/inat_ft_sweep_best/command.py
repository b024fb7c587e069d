"""The results of a sweep: `inat-ft sweep best`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from inat_ft_sweeps.render import Id, Storage, SweepsDir, folder_options, objective, open_sweep, settings, trial_json

from inat_ft.cli import options, render
from inat_ft.tables import Table
from inat_ft.text import pluralize

if TYPE_CHECKING:
    from inat_ft_sweeps.attempts import Trial
    from inat_ft_sweeps.selection import Candidate, Selection
    from inat_ft_sweeps.study import Sweep

    from inat_ft.records import Evaluation
    from inat_ft_sweep_best.replication import Replication


def best(
    id: Id = None,
    top: Annotated[int, typer.Option(min=1, help="Number of trials to list.")] = 5,
    train: Annotated[bool, typer.Option("--train", help="Train the best settings as a separate run.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Evaluate the best run on the test set. Evaluations are counted.")
    ] = False,
    confirm: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Train the top K again with other seeds.")
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
    from inat_ft_sweeps.selection import choose

    from inat_ft.errors import UsageError
    from inat_ft_sweep_best.replication import replication

    if seeds is not None and confirm is None:
        problem = "--seeds requires --confirm: it is the number of seeds of each replication"
        raise UsageError(problem, "add: --confirm 3")
    sweep = open_sweep(id, sweeps_dir, storage)
    selection = choose(sweep)
    repeats = _confirm(sweep, confirm, seeds or 3, cache_dir) if confirm else replication(sweep)
    chosen = repeats[0].trial.number if repeats else selection.candidates[0].trial.number
    taken = next(candidate for candidate in selection.candidates if candidate.trial.number == chosen)
    folder = _train(sweep, taken.trial, runs_dir, cache_dir) if train else sweep.runs / taken.trial.run
    found = _evaluate(sweep, folder) if evaluate else None
    if json:
        render.echo_json(_best_json(sweep, selection, taken, repeats, folder, found))
        return
    show_selection(sweep, selection, top)
    if repeats:
        _show_replications(repeats)
    render.echo(f"best: {sweep.command(taken.trial.params)}")
    if train:
        render.echo(f"trained: {folder}")
    if found is not None:
        accuracy, times = found.metrics["accuracy"].value, pluralize(found.look or 1, "time")
        render.echo(f"test accuracy of {folder}: {accuracy:.4f} (test set evaluated {times})")
    elif train:
        render.info(f"next: inat-ft eval {folder}")
    else:
        render.info(f"next: {sweep.next_command('best', *folder_options(cache_dir, runs_dir), '--eval')}")


def _confirm(sweep: "Sweep", top: int, seeds: int, cache_dir: Path | None) -> "list[Replication]":
    from inat_ft.paths import cache_folder
    from inat_ft_sweep_best.replication import replicate

    base = dict(sweep.spec.overrides({})).get("seed", 0)
    objectives = {n: objective(sweep, cache_folder(cache_dir), ("seed", base + n)) for n in range(1, seeds + 1)}
    return replicate(sweep, top, seeds, objectives)


def _train(sweep: "Sweep", trial: "Trial", runs_dir: Path, cache_dir: Path | None) -> Path:
    from inat_ft.cli.train import callbacks
    from inat_ft.paths import cache_folder
    from inat_ft.settings import load_config
    from inat_ft.setup import Directories
    from inat_ft.training import train

    config = load_config(None, sweep.settings(trial.params))
    return train(config, Directories(runs_dir, cache_folder(cache_dir)), callbacks(config))[1]


def _evaluate(sweep: "Sweep", directory: Path) -> "Evaluation":
    from inat_ft.evaluation.evaluate import evaluate_run

    with render.progress("evaluating on test") as progress:
        found = evaluate_run(directory, "test", progress=progress)
    sweep.note("evaluated", [*sweep.attr("evaluated", []), directory.as_posix()])
    return found.evaluation


def _best_json(
    sweep: "Sweep",
    selection: "Selection",
    taken: "Candidate",
    repeats: "list[Replication]",
    folder: Path,
    found: "Evaluation | None",
) -> dict[str, Any]:
    def about(candidate: "Candidate") -> dict[str, Any]:
        test = {"p": candidate.p, "standing": candidate.standing, "cost_s": candidate.cost}
        return {**trial_json(sweep, candidate.trial), **test}

    return {
        "id": sweep.id,
        "best": about(taken),
        "tied": [about(candidate) for candidate in selection.not_significantly_worse],
        "cheapest": about(selection.cheapest),
        "method": selection.test,
        "bias": selection.bias or None,
        "confirmed": [
            {"number": c.trial.number, "values": list(c.values), "mean": c.mean, "deviation": c.deviation}
            for c in repeats
        ],
        "directory": folder.as_posix(),
        "test_accuracy": found.metrics["accuracy"].value if found else None,
        "look": found.look if found else None,
    }


def show_selection(sweep: "Sweep", selection: "Selection", top: int) -> None:
    columns = {"trial": "d", sweep.spec.metric.name: ".4f", "against the best": "", "p (Holm)": ".2g", "cost": ">"}
    rows = [
        (c.trial.number, c.trial.value, c.standing, c.p, c.cost and f"{c.cost:.1f} s", settings(c.trial))
        for c in selection.candidates[:top]
    ]
    render.table(Table({**columns, "settings": ""}, rows, f"sweep {sweep.id}"), drop=("cost", "p (Holm)"))
    if len(selection.candidates) == 1:
        render.echo("it is the only complete trial")
        return
    if selection.is_tested:
        tied = [str(candidate.trial.number) for candidate in selection.not_significantly_worse[1:]]
        others = pluralize(len(selection.candidates) - 1, "other trial")
        shown = f": {', '.join(tied)}" if tied else ""
        render.echo(f"not significantly different from the best: {len(tied)} of {others}{shown}")
    render.echo(f"test: {selection.test}")
    render.warn(f"{selection.bias}; train it with other seeds (--confirm 3), or evaluate it on the test set (--eval)")
    cheapest = selection.cheapest
    if cheapest.cost is not None and selection.is_tested:
        shown = f"trial {cheapest.trial.number}, {cheapest.cost:.1f} s, {settings(cheapest.trial)}"
        render.echo(f"cheapest that is not significantly worse: {shown}")


def _show_replications(repeats: "list[Replication]") -> None:
    rows = [
        (
            c.trial.number,
            c.values[0],
            f"{c.mean:.4f}" + ("" if c.deviation is None else f" ± {c.deviation:.4f}"),
            ", ".join(f"{value:.4f}" for value in c.values[1:]),
        )
        for c in repeats
    ]
    columns = {"trial": "d", "in the sweep": ".4f", "mean of the new seeds": "", "each": ""}
    render.table(Table(columns, rows, "repeated with other seeds"))
    render.echo(f"best by the mean of the new seeds: trial {repeats[0].trial.number}, {settings(repeats[0].trial)}")
