"""`inat-ft sweep soup`: average the weights of the runs of a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from inat_ft_sweeps.render import Id, Storage, SweepsDir, open_sweep

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft_soup.soup import Soup


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
    from inat_ft_soup.soup import make_soup

    sweep = open_sweep(id, sweeps_dir, storage)
    with render.progress("averaging", "runs") as progress:
        made = make_soup(sweep, runs_dir, cache_folder(cache_dir), name, progress)
    if json:
        render.echo_json(_to_json(made))
    else:
        _show(made)


def _to_json(soup: "Soup") -> dict[str, Any]:
    return {
        "directory": soup.directory.as_posix(),
        "members": soup.members,
        "candidates": soup.num_candidates,
        "val_accuracy": soup.record.val_accuracy,
        "best_alone": soup.best_alone,
        "left_out": soup.excluded,
    }


def _show(soup: "Soup") -> None:
    accuracy = soup.record.val_accuracy or 0.0
    for run, reason in soup.excluded.items():
        render.info(f"excluded: {run}: {reason}")
    candidates = f"{soup.num_candidates} runs with the same initialization"
    render.echo(f"averaged: {', '.join(soup.members)} ({len(soup.members)} of {candidates})")
    render.echo(
        f"validation accuracy {accuracy:.4f}; {soup.members[0]}, the best of them, has {soup.best_alone:.4f} "
        f"({100 * (accuracy - soup.best_alone):+.2f} points; both in float32, as in `eval`)"
    )
    render.warn("the validation images chose the runs, so this accuracy is optimistically biased; use the test set")
    render.echo(f"run:  {soup.directory}")
    render.info(f"next: inat-ft eval {soup.directory}")
