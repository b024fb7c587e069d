"""What the documentation says is true: its commands exist, its schema is current, its examples run."""

import json
import re
from pathlib import Path

import pytest
import typer

from inat_ft.cli import commands
from inat_ft.cli.main import app
from inat_ft.records import RunRecord

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def known_options() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}

    def walk(command, words: tuple[str, ...]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner if words else commands.load(name), (*words, name))
        found[" ".join(words)] = {
            option for parameter in command.params for option in parameter.opts + parameter.secondary_opts
        }

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_the_page_exists(page: Path) -> None:
    known = known_options()
    for line in re.findall(r"(?m)(?:`|^ {4}(?:\$ )?)inat-ft ((?:[a-z]+)(?: [^\n`#|]*)?)", page.read_text()):
        words = line.split()
        command = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert command in known, f"{page.name}: inat-ft {line}"
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line):
            assert option in known[command] | {"--help", "--quiet", "--debug"}, f"{page.name}: inat-ft {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_published_schema_is_that_of_the_model() -> None:
    assert json.loads((ROOT / "docs" / "record.schema.json").read_text()) == RunRecord.model_json_schema()
