"""`inat-ft compare`: which classifier is better, by how much, and how certain that is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render
from inat_ft.tables import Table

if TYPE_CHECKING:
    from inat_ft.api.comparison import Comparison

_MAX_NOTES = 12


def compare(
    records: Annotated[list[Path], typer.Argument(help="Records, folders of a run, or folders of several runs.")],
    metric: Annotated[
        str, typer.Option(help="accuracy, balanced_accuracy, macro_f1, log_loss, ..., or a plugin's metric.")
    ] = "accuracy",
    group: Annotated[bool, typer.Option("--group", help="Treat runs that differ only in their seed as one.")] = False,
    margin: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Equivalence margin: smaller differences are negligible, such as 0.01."),
    ] = None,
    html: Annotated[Path | None, options.output("HTML file to write a report to.")] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="Exit with code 1 unless the last record is better than the first by this much, on the same images.",
            min=-1,
            max=1,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare classifiers on their test images: intervals, paired tests, and a conclusion in plain sentences.

    A record of another program needs `name` and `test_accuracy`. With its predictions, a paired test is possible.

    [dim]inat-ft compare runs/cnn-full-1 runs/resnet50-head-1[/dim]
    [dim]inat-ft compare part-a.json part-b.json --html report.html[/dim]
    """
    from inat_ft.api.comparison import compare as compare_runs

    found = compare_runs(*records, metric=metric, group=group, margin=margin)
    if html is not None:
        found.to_html(html)
    render.emit(json, found.to_dict(), lambda: _show(found, html))
    if fail_under is not None:
        from inat_ft.errors import InatFtError

        first, last = records[0], records[-1]
        reached = found.improvement(first, last)
        if reached is None:
            raise InatFtError(f"--fail-under {fail_under}: {last} and {first} are not comparable")
        if reached < fail_under - 1e-9:
            gained = f"{last} is better than {first} by only {reached:.4f} in {found.metric}"
            raise InatFtError(f"--fail-under {fail_under}: {gained}")


def _show(found: "Comparison", html: Path | None) -> None:
    from inat_ft.evaluation.compare import CANDIDATE_COLUMNS, PAIR_COLUMNS

    if found.settings:
        _show_settings(found)
    _show_table(found, "", CANDIDATE_COLUMNS, found.candidates)
    if any(pair.difference for pair in found.pairs):
        _show_table(found, "differences, corrected for all pairs", PAIR_COLUMNS, found.pairs)
    for note in found.remarks[:_MAX_NOTES]:
        render.echo(f"note: {note}")
    if len(found.remarks) > _MAX_NOTES:
        render.echo(f"{len(found.remarks) - _MAX_NOTES} more notes: use --json or --html to see all")
    render.echo(found.summary)
    if html is not None:
        render.echo(f"report: {html}")


def _show_settings(found: "Comparison") -> None:
    """Print the settings, in one column for all classifiers if the terminal is too narrow for one each."""
    names = [candidate.name for candidate in found.candidates]
    rows = [(key, *map(str, values)) for key, values in found.settings.items()]
    if sum(max(map(len, column)) + 3 for column in zip(("setting", *names), *rows, strict=True)) > render.width():
        rows = [(key, ", ".join(value or "-" for value in values)) for key, *values in rows]
        names = [", ".join(names)]
    render.table(Table(("setting", *names), rows, "settings that differ"))


def _show_table(found: "Comparison", title: str, columns: Sequence[Any], rows: Sequence[Any]) -> None:
    shown = {
        column.title.format(metric=found.scored_by.label, reference=found.reference, tested=found.tested): column
        for column in columns
        if any(column.cell(row) for row in rows)
    }
    drop = sorted((name for name in shown if shown[name].rank), key=lambda name: -shown[name].rank)
    formats = {name: ">" if column.numeric else "" for name, column in shown.items()}
    cells = [[column.cell(row) for column in shown.values()] for row in rows]
    render.table(Table(formats, cells, title), drop)
