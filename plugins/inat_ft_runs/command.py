"""`inat-ft runs`: list, filter, show and delete runs, and write an HTML overview."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from inat_ft.cli import options, render
from inat_ft.cli.commands import HELP
from inat_ft.tables import Table

if TYPE_CHECKING:
    from inat_ft_runs.folder import RunEntry


class ListByDefault(TyperGroup):
    """A group that runs `list` when its first argument is not a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


_HELP = "List, show and delete runs. Without a command, list them, with the options of `list`."
app = typer.Typer(name="runs", cls=ListByDefault, rich_markup_mode="rich", context_settings=HELP, help=_HELP)

Where = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Only runs that meet this condition, such as 'lr>=1e-3'. Can be repeated."),
]
Backbone = Annotated[str | None, typer.Option(help="Only runs with this backbone. * and ? are wildcards.")]
Mode = Annotated[str | None, typer.Option("--mode", "-m", help="Only runs with this strategy.")]
Sort = Annotated[str, typer.Option(metavar="KEY", help="Sort by this column or setting, the largest number first.")]
Reverse = Annotated[bool, typer.Option("--reverse", help="Reverse the order.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of runs.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")]

_COLUMNS = {
    "name": "",
    "val acc": ".4f",
    "test acc": ".4f",
    "mode": "",
    "backbone": "",
    "lr": ".3g",
    "epochs": "d",
    "seconds": ",.1f",
    "state": "",
    "created": lambda text: text[:16].replace("T", " "),
}
_DROPPED = ("created", "seconds", "epochs", "lr", "backbone", "state")
"""The columns that a narrow terminal omits, the least important first."""


@app.command("list")
def list_(
    where: Where = None,
    backbone: Backbone = None,
    mode: Mode = None,
    sort: Sort = "created",
    reverse: Reverse = False,
    limit: Limit = None,
    json: options.Json = False,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """List runs, the newest first. A narrow terminal omits the least important columns.

    [dim]inat-ft runs list --backbone "resnet*" --where 'val_accuracy>=0.9' --sort val_accuracy[/dim]
    """
    runs = _selected(where, backbone, mode, sort, reverse, runs_dir)
    shown = runs[:limit]
    render.emit(json, [_summary(run) for run in shown], lambda: _show_list(shown, len(runs), sort, runs_dir))


def _selected(
    where: list[str] | None, backbone: str | None, mode: str | None, sort: str, reverse: bool, runs_dir: Path
) -> "list[RunEntry]":
    from inat_ft_runs.folder import read_runs
    from inat_ft_runs.select import condition, sort_runs

    fields = {"backbone": backbone, "mode": mode}
    texts = [*(where or ()), *(f"{key}={value}" for key, value in fields.items() if value)]
    conditions = [condition(text) for text in texts]
    runs = [run for run in read_runs(runs_dir) if all(passes(run) for passes in conditions)]
    return sort_runs(runs, sort, reverse)


def _summary(run: "RunEntry") -> dict[str, Any]:
    from inat_ft_runs.select import COLUMNS

    values = {name: get(run) for name, get in COLUMNS.items()}
    return {**values, "directory": run.directory.as_posix(), "problem": run.problem or None}


def _show_list(runs: "list[RunEntry]", found: int, sort: str, runs_dir: Path) -> None:
    from inat_ft.text import pluralize

    rows = []
    for run in runs:
        values = _summary(run)
        names = ("name", "val_accuracy", "test_accuracy", "mode", "backbone", "lr", "epochs", "seconds")
        rows.append([*(values[name] for name in names), run.state, run.created])
    if not rows:
        render.info(f"no runs in {runs_dir} match")
        return
    render.table(Table(_COLUMNS, rows), drop=[name for name in _DROPPED if name != sort or name == "created"])
    for run in runs:
        if run.problem:
            render.warn(f"{run.name}: {run.problem}")
    if found > len(runs):
        render.info(f"{pluralize(found - len(runs), 'more run')} not shown because of --limit")


@app.command()
def show(run: RunName, json: options.Json = False, runs_dir: options.RunsDir = Path("runs")) -> None:
    """Show the results, the changed settings, the history and the files of a run.

    [dim]inat-ft runs show resnet50-head-1[/dim]
    """
    from inat_ft_runs.details import as_dict, print_details
    from inat_ft_runs.folder import find_run, read_run

    entry = read_run(find_run(run, runs_dir))
    render.emit(json, as_dict(entry), lambda: print_details(entry))


@app.command()
def delete(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    json: options.Json = False,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """Delete runs and their weights, after confirmation. A run that a process is training is not deleted.

    [dim]inat-ft runs delete resnet50-head-1 resnet50-head-2[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.text import format_bytes, pluralize
    from inat_ft_runs.folder import delete_run, find_deletable, num_bytes, remove_leftovers

    remove_leftovers(runs_dir)
    directories = list(dict.fromkeys(find_deletable(run, runs_dir) for run in runs))
    sizes = [num_bytes(directory) for directory in directories]
    for directory, size in zip(directories, sizes, strict=True):
        render.info(f"{directory}  {format_bytes(size)}")
    if not yes:
        question = f"Delete {pluralize(len(directories), 'run')} ({format_bytes(sum(sizes))})?"
        try:
            agreed = typer.confirm(question, err=True)
        except typer.Abort:
            raise UsageError("nothing was deleted: no answer", "to delete without a question, add --yes") from None
        if not agreed:
            render.info("nothing was deleted")
            raise typer.Exit(1)
    for directory in directories:
        delete_run(directory)
    names = [directory.as_posix() for directory in directories]
    deleted = f"deleted {pluralize(len(directories), 'run')}, {format_bytes(sum(sizes))}"
    render.emit(json, {"deleted": names, "bytes": sum(sizes)}, lambda: render.echo(deleted))


@app.command()
def html(
    out: Annotated[Path, options.output("HTML file to write; an existing one is replaced.")] = Path("runs.html"),
    where: Where = None,
    backbone: Backbone = None,
    mode: Mode = None,
    sort: Sort = "val_accuracy",
    reverse: Reverse = False,
    json: options.Json = False,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """Write an overview of runs, with their curves, as one HTML page that works offline.

    [dim]inat-ft runs html --out runs.html --where mode=head[/dim]
    """
    from inat_ft_runs.page import write_page

    runs = _selected(where, backbone, mode, sort, reverse, runs_dir)
    write_page(runs, runs_dir, out)
    render.emit(json, {"file": out.as_posix(), "runs": [run.name for run in runs]}, lambda: render.echo(out.as_posix()))
