"""`inat-ft compare`: which classifier is better, by how much, and how certain that is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.api.comparison import Comparison
    from inat_ft.evaluation.tables import Column

_MAX_NOTES = 12


def compare(
    records: Annotated[list[Path], typer.Argument(help="Records, run directories, or directories of runs.")],
    metric: Annotated[
        str, typer.Option(help="accuracy, balanced_accuracy, macro_f1, log_loss, ..., or a plugin's metric.")
    ] = "accuracy",
    group: Annotated[bool, typer.Option("--group", help="Treat runs that differ only in their seed as one.")] = False,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Equivalence margin: smaller differences are negligible, such as 0.01.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report as one HTML file.", show_default=False)] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 unless the last record beats the first by this much. Also if they cannot be compared.",
            show_default=False,
            min=-1,
            max=1,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare classifiers on their test images: intervals, paired tests, and a conclusion in plain sentences.

    A record of another program needs `name` and `test_accuracy`. With its predictions, a paired test is possible.

    [dim]inat-ft compare runs/cnn-full-1 runs/resnet50-head-1[/dim]
    [dim]inat-ft compare partA.json partB.json --html report.html[/dim]
    """
    from inat_ft.api.comparison import compare as compare_runs

    found = compare_runs(*records, metric=metric, group=group, margin=margin)
    if html is not None:
        found.to_html(html)
    if json:
        render.echo_json(found.to_dict())
    else:
        _show(found)
        if html is not None:
            render.echo(f"report: {html}")
    if fail_under is not None:
        _require_improvement(found, records[0], records[-1], fail_under)


def _require_improvement(found: "Comparison", first: Path, last: Path, wanted: float) -> None:
    from inat_ft.errors import InatFtError
    from inat_ft.evaluation.compare import improvement

    reached = improvement(found, first, last)
    if reached is None:
        raise InatFtError(f"--fail-under {wanted}: {last} and {first} are not comparable")
    if reached < wanted - 1e-9:
        raise InatFtError(
            f"--fail-under {wanted}: {last} is better than {first} by only {reached:.4f} in {found.metric}"
        )


def _show(found: "Comparison") -> None:
    from inat_ft.evaluation.tables import CANDIDATE_COLUMNS, PAIR_COLUMNS

    if found.settings:
        changed = [(key, *values) for key, values in found.settings.items()]
        render.table("settings that differ", ("setting", *(candidate.name for candidate in found.candidates)), changed)
    _show_table(found, "", CANDIDATE_COLUMNS, found.candidates)
    if any(pair.difference for pair in found.pairs):
        _show_table(found, "differences, corrected for all pairs", PAIR_COLUMNS, found.pairs)
    for note in found.remarks[:_MAX_NOTES]:
        render.echo(f"note: {note}")
    if len(found.remarks) > _MAX_NOTES:
        render.echo(f"{len(found.remarks) - _MAX_NOTES} more notes: use --json or --html to see all")
    render.echo(found.summary)


def _show_table(found: "Comparison", title: str, columns: "Sequence[Column[Any]]", rows: Sequence[Any]) -> None:
    """Show the columns that have a value in any row."""
    names = {column: column.title.format(metric=found.scored_by.label, reference=found.reference) for column in columns}
    shown = [column for column in columns if any(column.cell(row) for row in rows)]
    dropped = sorted((column for column in shown if column.rank), key=lambda column: -column.rank)
    render.table(
        title,
        [names[column] for column in shown],
        [[column.cell(row) for column in shown] for row in rows],
        right=[names[column] for column in shown if column.numeric],
        drop=[names[column] for column in dropped],
    )
