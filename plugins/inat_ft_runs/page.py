"""An overview of runs as one HTML page, which works offline and has no scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inat_ft import __version__
from inat_ft.paths import relative_path
from inat_ft.records import check_output, write_text
from inat_ft.text import escape_unprintable
from inat_ft_runs.charts import Series, line_chart
from inat_ft_runs.details import changed_settings
from inat_ft_runs.folder import RunEntry

_MAX_LINES = 12
"""Runs in the joint chart."""


def write_page(runs: Sequence[RunEntry], runs_dir: Path, out: Path) -> None:
    """Write the page, atomically. The runs keep their order. Raises UsageError if it would replace a file of a run."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    check_output(out)
    loader = ChoiceLoader([PackageLoader("inat_ft_runs"), PackageLoader("inat_ft_report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    best = max(
        (run for run in runs if run.val_accuracy is not None), key=lambda run: run.val_accuracy or 0, default=None
    )
    drawn = sorted((run for run in runs if run.history), key=lambda run: -(run.val_accuracy or 0.0))[:_MAX_LINES]
    lines = [
        Series(run.name, _points(run, "val_accuracy"), f"line-{n % 6}{' dashed' * (n > 5)}")
        for n, run in enumerate(drawn)
    ]
    page = environment.get_template("runs.html").render(
        runs=[_row(run, out) for run in runs],
        folder=runs_dir.as_posix(),
        best=best,
        chart=line_chart("Validation accuracy", lines, 440, 240),
        legend=[(line.label, line.style) for line in lines],
        version=__version__,
    )
    write_text(out, page)


def _points(run: RunEntry, name: str) -> list[tuple[float, float]]:
    values = ((epoch.epoch, getattr(epoch, name)) for epoch in run.history)
    return [(number, math.nan if value is None else value) for number, value in values]


def _row(run: RunEntry, out: Path) -> dict[str, Any]:
    link = relative_path(run.directory.resolve(), out.resolve().parent)
    curves = [
        (quantity, line_chart(f"{quantity} of {run.name}", [
            Series("training", _points(run, f"train_{quantity}"), "line-1"),
            Series("validation", _points(run, f"val_{quantity}"), "line-0"),
        ]))
        for quantity in ("loss", "accuracy")
    ]  # fmt: skip
    return {
        "run": run,
        "name": escape_unprintable(run.name),
        "link": quote(link) + "/",
        "test": run.record.test if run.record else None,
        "test_accuracy": run.record.test_accuracy if run.record else None,
        "mode": run.setting("strategy.name") or "",
        "backbone": run.setting("model.backbone") or "",
        "lr": run.setting("optim.lr"),
        "curves": [(quantity, svg) for quantity, svg in curves if svg],
        "settings": changed_settings(run),
    }
