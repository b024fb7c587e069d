"""Where a command can write: each option that names an output is checked before the command does anything."""

import os
from pathlib import Path

import pytest

from inat_ft.cli import commands
from inat_ft.errors import UsageError
from inat_ft.records import write_text

OUTPUTS = {
    # command and arguments: its option for outputs, and what it writes
    "split photos": ("--out", "file"),
    "compare a b": ("--html", "file"),
    "predict run photos": ("--out", "file"),
    "export run": ("--out", "either"),
    "runs html": ("--out", "file"),
    "record new theirs.csv --name a": ("--out", "file"),
    "record huggingface state.json --name a": ("--out", "file"),
    "record wandb export.csv --name a": ("--out", "file"),
    "audit split.csv": ("--out", "folder"),
    "learning-curve": ("--out", "folder"),
    "suggest run photos": ("--out", "folder"),
    "sweep report": ("--out", "folder"),
    "tune photos": ("--out", "folder"),
}
CASES = [
    (words, option, kind, wrong)
    for words, (option, kind) in OUTPUTS.items()
    for wrong in ("folder", "file", "special", "inside a file", "not writable")
    if kind not in (wrong, "either") or wrong not in ("folder", "file")
]


def test_the_table_has_all_commands_with_an_output() -> None:
    found = set()
    for name in commands.listed():
        command = commands.load(name)
        for inner, each in getattr(command, "commands", {"": command}).items():
            for option in each.params:
                if {"--out", "--html", "--csv"} & set(option.opts):
                    found.add((f"{name} {inner}".strip(), option.opts[0]))
    known = {
        (" ".join(words.split()[: 1 + (words.split()[0] in ("record", "runs", "sweep"))]), option)
        for words, (option, _) in OUTPUTS.items()
    }
    assert found == known


@pytest.mark.parametrize(("words", "option", "kind", "wrong"), CASES)
def test_an_output_that_cannot_be_written_is_refused_first(words, option, kind, wrong, refused, monkeypatch) -> None:
    Path("folder").mkdir()
    Path("file").write_text("text", encoding="utf-8")
    os.mkfifo("special")
    path = {"inside a file": "file/x", "not writable": "folder/new/x"}.get(wrong, wrong)
    if wrong == "not writable":  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder).name != "folder")
    says = {"inside a file": "is not a folder", "not writable": "is not writable", "special": "is not a file"}
    ran = refused([*words.split(), option, path], 2, (f"{option} {path}", says.get(wrong, f"is a {wrong}")))
    assert len(ran.err.strip().splitlines()) == 2  # one sentence and what to do


def test_the_python_api_refuses_a_folder(tmp_path: Path) -> None:
    import inat_ft

    Path("a.json").write_text('{"name": "a", "test_accuracy": 0.5, "num_test": 100}', encoding="utf-8")
    Path("b.json").write_text('{"name": "b", "test_accuracy": 0.6, "num_test": 100}', encoding="utf-8")
    with pytest.raises(UsageError, match="is a folder"):
        inat_ft.compare("a.json", "b.json").to_html(tmp_path)


def test_missing_folders_are_created() -> None:
    write_text(Path("new/inside/page.html"), "text")
    assert Path("new/inside/page.html").read_text(encoding="utf-8") == "text"
