"""The files of suggestions: a CSV, and an HTML page with thumbnails that works offline."""

from __future__ import annotations

from pathlib import Path

from inat_ft_report.report import thumbnail

from inat_ft import __version__
from inat_ft.evaluation.predictions import write_csv
from inat_ft.records import write_text
from inat_ft_insights.suggest import Suggestions


def write_suggestions(found: Suggestions, file: Path) -> None:
    """Write the suggestions as CSV, with an empty column `label`."""
    rows = [{**each.to_dict(), "label": ""} for each in found.chosen]
    write_csv(file, list(rows[0]), (list(row.values()) for row in rows))


def write_contact_sheet(found: Suggestions, file: Path, folder: Path) -> None:
    """Write the page. folder: that of the photographs."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("inat_ft_insights"), PackageLoader("inat_ft_report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    cards = [(each, each.path.relative_to(folder).as_posix(), thumbnail(each.path)) for each in found.chosen]
    page = environment.get_template("suggest.html").render(
        found=found, folder=folder.as_posix(), cards=cards, version=__version__
    )
    write_text(file, page)
