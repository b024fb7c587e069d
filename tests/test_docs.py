"""What the documentation says is true: its commands exist, its schema is current, its examples run."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from inat_ft.cli import commands
from inat_ft.cli.main import app
from inat_ft.records import RunRecord
from tools import site

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/inat-ft/inat-ft/blob/main/"
RAW = REPOSITORY.replace("/blob/", "/raw/")  # files such as pictures
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_lines(page: Path) -> list[str]:
    """Return the arguments of every `inat-ft` in the code blocks of a page, without comments."""
    blocks = [code for language, code in site.code_blocks(page.read_text()) if language in ("bash", "console")]
    lines = [line for code in blocks for line in re.findall(r"(?m)^(?:\$ )?inat-ft ([^\n]*)", code)]
    return [re.sub(r"\s+#\s.*", "", line).strip() for line in lines]


def known_options() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}

    def walk(command, words: tuple[str, ...]) -> None:
        for name, inner in (getattr(command, "commands", {}) if words else commands.listed()).items():
            walk(inner if words else commands.load(name), (*words, name))
        found[" ".join(words)] = {
            option for parameter in command.params for option in parameter.opts + parameter.secondary_opts
        }

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_the_page_exists(page: Path) -> None:
    known = known_options()
    for line in re.findall(r"(?m)(?:`|^ *(?:\$ )?)inat-ft ([a-z][a-z-]*(?: [^\n`#|]*)?)", page.read_text()):
        words = line.split()
        if words[0] == "epochs" or words[:2] == ["sweep", "epochs"]:  # the example plugin of docs/plugins/commands.md
            continue
        command = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert command in known, f"{page.name}: inat-ft {line}"
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line):
            options = known[command] | known.get(f"{command} list", set())  # what some groups run without a subcommand
            assert option in options | {"--help", "--quiet", "--debug"}, f"{page.name}: inat-ft {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_code_block_is_parsed(page: Path) -> None:
    for line in command_lines(page):
        words = shlex.split(line)
        if words[0] == "epochs" or words[:2] == ["sweep", "epochs"]:  # the example plugin of docs/plugins/commands.md
            continue
        command = commands.load(words.pop(0))
        if words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        context = command.make_context("inat-ft", [], resilient_parsing=True)
        _, left, _ = command.make_parser(context).parse_args(words)  # raises for an unknown option or a missing value
        assert left == [], f"{page.name}: inat-ft {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_compiles(page: Path) -> None:
    for language, code in site.code_blocks(page.read_text()):
        if language != "pycon" and re.search(r"(?m)^(import |from \w+ import |def |class |async def )", code):
            assert language == "python", f"{page.name}: no Python:\n{code}"
        if language == "python":
            compile(code, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if target.startswith((REPOSITORY, RAW)):
            assert (ROOT / target.removeprefix(REPOSITORY).removeprefix(RAW)).exists(), target
        elif not target.startswith("http"):
            assert page.name != "README.md", f"PyPI does not resolve {target}: start it with {REPOSITORY}"
            assert (page.parent / target).exists(), target


def test_the_published_schema_is_that_of_the_model() -> None:
    assert json.loads((ROOT / "docs" / "record.schema.json").read_text()) == RunRecord.model_json_schema()
