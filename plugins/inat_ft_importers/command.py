"""`inat-ft record`: import the results of other programs for `inat-ft compare`."""

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
    help="Import the results of other programs for `inat-ft compare`.",
)

Name = Annotated[str, typer.Option(help="Name of the classifier in the comparison.")]
Out = Annotated[Path, options.output("Record file to write, such as theirs.json.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]


@app.command()
def huggingface(
    state: Annotated[Path, typer.Argument(help="The trainer_state.json of the training.")],
    name: Name,
    out: Out,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Import a training run of the Hugging Face Trainer.

    [dim]inat-ft record huggingface checkpoint-500/trainer_state.json --name theirs --out theirs.json[/dim]
    """
    from inat_ft_importers.huggingface import from_trainer_state

    _write(lambda: from_trainer_state(state, name), name, out, force, json)


@app.command()
def new(
    predictions: Annotated[
        Path,
        typer.Argument(help="CSV file with the columns path, true, predicted, and optionally sha256 and p_<class>."),
    ],
    name: Name,
    out: Out,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Import predictions on the test images, one row per image. They allow all metrics and paired tests.

    [dim]inat-ft record new predictions.csv --name "my cnn" --out part-a.json[/dim]
    """
    from inat_ft_importers.predictions import from_predictions

    def warn(error: "InatFtError") -> None:
        render.warn(f"{error.message}; skipped")

    _write(lambda: from_predictions(predictions, name, out, warn), name, out, force, json)


@app.command()
def wandb(
    export: Annotated[Path, typer.Argument(help="Exported history (CSV or JSON) or summary (JSON) of a run.")],
    name: Name,
    out: Out,
    run: Annotated[str | None, typer.Option(help="Name of the run, if the file has several.")] = None,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Import a run that was exported from W&B.

    [dim]inat-ft record wandb history.csv --name theirs --out theirs.json[/dim]
    """
    from inat_ft_importers.wandb import from_wandb

    _write(lambda: from_wandb(export, name, run), name, out, force, json)


def _write(make: "Callable[[], RunRecord]", name: str, out: Path, force: bool, json: bool) -> None:
    from inat_ft.errors import UsageError
    from inat_ft.records import write_record
    from inat_ft.text import is_printable

    if not name.strip() or not is_printable(name):
        raise UsageError(f"--name {name!r} is empty or has unprintable characters", "choose another name")
    if out.exists() and not force:
        raise UsageError(f"{out} already exists", "choose another file with --out, or add --force to overwrite it")
    record = make()
    write_record(record, out)
    shown = "unknown" if record.test_accuracy is None else f"{record.test_accuracy:.4f}"
    line = f"{out}: {record.name}, test accuracy {shown}"
    render.emit(json, record.model_dump(mode="json"), lambda: render.echo(line))
