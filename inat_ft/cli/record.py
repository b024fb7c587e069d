"""`inat-ft record`: records of other programs, for `compare`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inat_ft.cli import options, render
from inat_ft.cli.commands import HELP

if TYPE_CHECKING:
    from inat_ft.errors import InatFtError
    from inat_ft.records import RunRecord

app = typer.Typer(
    name="record",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings=HELP,
    help="Make a record from another program's results, for `inat-ft compare`.",
)

Name = Annotated[str, typer.Option(help="Name of the classifier in comparisons.")]
Out = Annotated[Path, typer.Option(help="Record to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@app.command()
def new(
    predictions: Annotated[Path, typer.Argument(help="CSV: path,true,predicted[,sha256][,p_<class>...].")],
    name: Name,
    out: Out,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Make a record from predictions on the test images, one row per image. This allows a paired test.

    [dim]inat-ft record new predictions.csv --name "my cnn" --out partA.json[/dim]
    """
    from inat_ft.evaluation.importers import from_predictions

    def warn(error: "InatFtError") -> None:
        render.warn(f"{error.message}; skipped")

    _write(lambda: from_predictions(predictions, name, out, warn), name, out, force, json)


@app.command()
def wandb(
    export: Annotated[Path, typer.Argument(help="History of one run as CSV or JSON, or its summary as JSON.")],
    name: Name,
    out: Out,
    run: Annotated[
        str | None, typer.Option(help="Name of the run, if the export has several.", show_default=False)
    ] = None,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Make a record from a W&B export of a run."""
    from inat_ft.evaluation.importers import from_wandb

    _write(lambda: from_wandb(export, name, run), name, out, force, json)


@app.command()
def huggingface(
    state: Annotated[Path, typer.Argument(help="A trainer_state.json.")],
    name: Name,
    out: Out,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Make a record from the state of a Hugging Face Trainer."""
    from inat_ft.evaluation.importers import from_trainer_state

    _write(lambda: from_trainer_state(state, name), name, out, force, json)


def _write(make: "Callable[[], RunRecord]", name: str, out: Path, force: bool, json: bool) -> None:
    from inat_ft.errors import UsageError
    from inat_ft.records import write_record
    from inat_ft.text import is_printable

    if not name.strip() or not is_printable(name):
        raise UsageError(f"--name {name!r} is empty or has control characters", "use letters, digits and punctuation")
    if out.exists() and not force:
        raise UsageError(f"{out} already exists", "name another file with --out, or replace it with --force")
    record = make()
    write_record(record, out)
    if json:
        render.echo_json(record.model_dump(mode="json"))
        return
    shown = "unknown" if record.test_accuracy is None else f"{record.test_accuracy:.4f}"
    render.echo(f"{out}: {record.name}, test accuracy {shown}")
