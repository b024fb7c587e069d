"""The files of an audit: a CSV for the verdicts, and an HTML page with thumbnails that works offline."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from inat_ft_report.report import thumbnail

from inat_ft import __version__
from inat_ft.evaluation.predictions import read_csv, write_csv
from inat_ft.records import write_text
from inat_ft_insights.audit import Audit, Kind

_COLUMNS = (
    "path", "subset", "label", "kind", "suggested", "label_probability", "suggested_probability", "distance", "verdict",
)  # fmt: skip
_TITLES = {
    Kind.LABEL: ("Suspected label errors", "another class is more probable than the label"),
    Kind.OUTLIER: ("Outliers", "far from every other image: another subject, a damaged image or a rare view"),
    Kind.AMBIGUOUS: ("Ambiguous images", "two classes are about equally probable"),
}


def write_verdicts(audit: Audit, file: Path) -> int:
    """Write the CSV with the column `verdict`, and return the number of verdicts kept from an existing file."""
    before = _filled(file)
    rows = [
        {**suspect.to_dict(), "verdict": before.get(suspect.path, {}).get("verdict", "")} for suspect in audit.suspects
    ]
    listed = {suspect.path for suspect in audit.suspects}
    rows += [row for path, row in before.items() if path not in listed]  # verdicts of an earlier audit
    write_csv(file, _COLUMNS, ([row.get(name, "") for name in _COLUMNS] for row in rows))
    return len(before)


def _filled(file: Path) -> dict[str, dict[str, str]]:
    """Return the rows of an existing CSV that have a verdict, by path."""
    if not file.is_file():
        return {}
    header, lines = read_csv(file, ("path", "verdict"))
    rows = [dict(zip(header, cells, strict=False)) for _, cells in lines]
    return {row["path"]: row for row in rows if row.get("path") and row.get("verdict", "").strip()}


def write_page(audit: Audit, file: Path, csv_file: Path, limit: int) -> None:
    """Write the page; limit: number of images of each kind that it shows."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("inat_ft_insights"), PackageLoader("inat_ft_report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("audit.html").render(
        audit=audit,
        manifest=audit.features.manifest.path,
        images=len(audit.ranking),
        sections=[_section(audit, kind, limit) for kind in Kind],
        csv=csv_file.name,
        command=shlex.join(["inat-ft", "split", "DATA", "--corrections", csv_file.as_posix(), "--force"]),
        version=__version__,
    )
    write_text(file, page)


def _section(audit: Audit, kind: Kind, limit: int) -> dict[str, Any]:
    root = audit.features.manifest.root
    suspects = [suspect for suspect in audit.suspects if suspect.kind is kind]
    title, text = _TITLES[kind]
    cards = [(suspect, thumbnail(root / suspect.path)) for suspect in suspects[:limit]]
    return {"kind": kind.value, "title": title, "text": text, "cards": cards, "count": len(suspects)}
