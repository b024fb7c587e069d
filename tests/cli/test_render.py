"""What a terminal shows: names as they are, tables that fit."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from inat_ft.cli import render
from inat_ft.errors import InatFtError
from inat_ft.tables import Table

NAMES = ["Felis [/wild]", "[red] fox", "[bold]x", "a [link=http://x]y", ":cat:", "שלום", "狐", "\\[x]"]
HIDDEN = [
    ("a\x1b[31mb", "a\\x1b[31mb"),
    ("a\u202eb", "a\\u202eb"),
    ("x\u2066y", "x\\u2066y"),
    ("l\u2028m", "l\\u2028m"),
]


@pytest.mark.parametrize(("name", "shown"), [*((name, name) for name in NAMES), *HIDDEN])
def test_names_are_shown_as_they_are_in_every_place(capsys, name: str, shown: str) -> None:
    render.table(Table(("class", f"column {name}"), [[f"cell {name}", "1"]], f"title {name}"))
    render.echo(f"result {name}")
    render.info(f"remark {name}")
    render.warn(f"warning {name}")
    problem = InatFtError(f"problem {name}", f"hint {name}")
    problem.add_note(f"note {name}")
    render.error(problem)
    out, err = capsys.readouterr()
    for place in ("title", "column", "cell", "result"):
        assert f"{place} {shown}" in out
    for place in ("remark", "warning", "problem", "hint", "note"):
        assert f"{place} {shown}" in err
    assert not {"\x1b", "\u202e", "\u2066", "\u2028"} & set(out + err)


@pytest.mark.parametrize(("name", "shown"), [*((name, name) for name in NAMES[:5]), *HIDDEN])
def test_progress_bars_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch, name: str, shown: str) -> None:
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=200, color_system=None, emoji=False)
    monkeypatch.setattr(render, "console", lambda stderr=False: terminal)
    with render.open_bar(name) as update:
        update(1, 2, "loss 1.5  ")
    assert shown in drawn.getvalue() and "loss 1.5" in drawn.getvalue()


COLUMNS = ("name", "accuracy", "difference", "time", "memory")
ROWS = [["resnet50-head-with-a-long-name", "0.8123", "-0.0123 (-0.0200 to +0.0100)", "1,234.5 s", "1,234 MiB"]]


def test_a_narrow_terminal_drops_the_least_important_columns(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for width, kept in ((200, COLUMNS), (95, COLUMNS[:4]), (80, COLUMNS[:3]), (50, COLUMNS[:3])):
        monkeypatch.setenv("COLUMNS", str(width))
        render.table(Table(COLUMNS, ROWS), drop=("memory", "time"))
        out, err = capsys.readouterr()
        head = out.splitlines()[1].split()
        assert head == list(kept)
        assert all(len(line.rstrip()) <= width for line in out.splitlines())
        assert "0.8123" in out and "…" not in out
        dropped = [column for column in COLUMNS if column not in kept]
        assert err == (f"columns omitted because the terminal is narrow: {', '.join(dropped)}\n" if dropped else "")


def test_a_title_can_be_wider_than_its_table(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    title = "confusion matrix: rows are true classes, columns are predicted classes"
    render.table(Table(("", "a"), [["a", "1"]], title))
    assert title in capsys.readouterr().out.splitlines()


def test_without_a_terminal_no_column_is_lost(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    render.table(Table(COLUMNS, ROWS), drop=("memory", "time"))
    assert capsys.readouterr().out.splitlines()[1].split() == list(COLUMNS)


def test_json_is_the_same_in_a_locale_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"name": "Käfer 狐", "lone": "\udcff"}
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
        render.echo_json(value)
        assert json.loads(raw.getvalue()) == value


def test_results_are_shown_in_a_locale_that_is_not_utf_8(process) -> None:
    for name, accuracy in (("Käfer [/b]", 0.5), ("b", 0.6)):
        text = json.dumps({"name": name, "test_accuracy": accuracy, "num_test": 100}, ensure_ascii=False)
        Path(f"{name[0]}.json").write_text(text, encoding="utf-8")
    ran = process("compare", "K.json", "b.json", PYTHONIOENCODING="ascii")
    assert ran.code == 0, ran.err
    assert "K\\xe4fer [/b]" in ran.out
