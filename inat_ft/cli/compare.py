"""`inat-ft compare`: which is better, by how much, and how sure that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.evaluation.candidates import Candidate
    from inat_ft.evaluation.compare import Comparison
    from inat_ft.evaluation.pairwise import PairwiseResult

_REMARKS = 12


def compare(
    records: Annotated[list[Path], typer.Argument(help="Records, run directories, or directories of runs.")],
    metric: Annotated[str, typer.Option(help="accuracy, balanced_accuracy, macro_f1, log_loss, ...")] = "accuracy",
    group: Annotated[bool, typer.Option("--group", help="Runs that differ in their seed alone count as one.")] = False,
    margin: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Difference that does not matter, such as 0.01.", show_default=False),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report as one HTML file.", show_default=False)] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 unless the last record beats the first by this much; also when they cannot be compared.",
            show_default=False,
            min=-1,
            max=1,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare classifiers on their test images: intervals, paired tests, and one plain sentence.

    A record of another code base needs `name` and `test_accuracy`; the more it has, the more can be said.

    [dim]inat-ft compare runs/cnn-full-1 runs/resnet50-head-1[/dim]
    [dim]inat-ft compare partA.json partB.json --html report.html[/dim]
    """
    from inat_ft.evaluation.compare import compare as run

    found = run(records, metric, group, margin)
    if html is not None:
        from inat_ft.evaluation.report import write_report

        write_report(found, html)
    if json:
        render.echo_json(_as_json(found))
    else:
        _show(found)
        if html is not None:
            render.echo(f"report: {html}")
    if fail_under is not None:
        _require_gain(found, records[0], records[-1], fail_under)


def _require_gain(found: "Comparison", first: Path, last: Path, wanted: float) -> None:
    from inat_ft.errors import InatFtError
    from inat_ft.evaluation.compare import improvement

    reached = improvement(found, first, last)
    if reached is None:
        raise InatFtError(f"--fail-under {wanted}: their records do not allow comparing {last} with {first}")
    if reached < wanted - 1e-9:
        raise InatFtError(f"--fail-under {wanted}: {last} beats {first} by {reached:.4f} in {found.metric} only")


def _show(found: "Comparison") -> None:
    from inat_ft.evaluation.configurations import differing_settings

    pairs = {pair.second: pair for pair in found.pairs}
    costs = ("trained", "epochs", "time", "images/s", "memory", "looks")
    columns = (
        *("name", found.metric.replace("_", " "), "95 % interval", f"difference to {found.reference}", "p (Holm)"),
        *costs,
    )
    settings = differing_settings([candidate.record for candidate in found.candidates])
    if settings:
        changed = [(key, *values) for key, values in settings.items()]
        render.table("settings that differ", ("setting", *(candidate.name for candidate in found.candidates)), changed)
    rows = [_row(candidate, pairs.get(candidate.name)) for candidate in found.candidates]
    render.table("", columns, rows, right=costs, drop=("images/s", "memory", "looks", "epochs", "time", "trained"))
    flips = [
        (pair.second, f"{pair.n_first_only:,}", f"{pair.n_second_only:,}", f"{pair.agreement:.1%}")
        for pair in found.pairs
        if pair.n_first_only is not None and pair.agreement is not None
    ]
    if flips:
        counts = (f"only {found.reference} correct", "only the other correct", "agreement")
        render.table("", ("classifier", *counts), flips, right=counts)
    for info in found.remarks[:_REMARKS]:
        render.echo(f"note: {info}")
    if len(found.remarks) > _REMARKS:
        render.echo(f"and {len(found.remarks) - _REMARKS} more notes: --json or --html has them all")
    render.echo(found.summary)


def _row(candidate: "Candidate", pair: "PairwiseResult | None") -> list[str]:
    record, score = candidate.record, candidate.score
    spread = "" if candidate.std is None else f" ± {candidate.std:.4f}"
    between = "" if score is None or score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}"
    total = record.seconds.get("total")
    looks = record.test.look if record.test else None
    return [
        candidate.name,
        "unknown" if score is None else f"{score.value:.4f}{spread}",
        between or "unknown",
        _difference(pair),
        "" if pair is None or pair.p_holm is None else f"{pair.p_holm:.2g}",
        f"{record.parameters.trained:,}" if record.parameters else "",
        str(len(record.history) or ""),
        f"{total:,.1f} s" if total else "",
        f"{record.images_per_s:,.0f}" if record.images_per_s else "",
        f"{record.peak_memory_mib:,.0f} MiB" if record.peak_memory_mib else "",
        str(looks or ""),
    ]


def _difference(pair: "PairwiseResult | None") -> str:
    if pair is None:
        return ""
    if pair.difference is None:
        return "unknown"
    value, low, high = (0.0 - part for part in (pair.difference.value, pair.difference.high, pair.difference.low))
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def _as_json(found: "Comparison") -> dict[str, Any]:
    return {
        "metric": found.metric,
        "reference": found.reference,
        "sentence": found.summary,
        "entries": [
            {
                "name": candidate.name,
                "records": [file.as_posix() for file in candidate.files],
                "score": candidate.score.model_dump() if candidate.score else None,
                "deviation": candidate.std,
                "num_test": candidate.num_test,
                "remarks": candidate.remarks,
            }
            for candidate in found.candidates
        ],
        "pairs": [
            {
                **pair.__dict__,
                "different_images": pair.different_images,
                "difference": pair.difference.__dict__ if pair.difference else None,
                "is_real": pair.is_significant,
            }
            for pair in found.pairs
        ],
        "remarks": found.remarks,
        "margin": found.margin,
    }
