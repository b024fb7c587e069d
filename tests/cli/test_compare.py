"""What `inat-ft compare` prints, and its exit codes for `--fail-under`."""

import json
from pathlib import Path

import pytest

from tests.runs.test_runs import make_run


@pytest.fixture
def claims() -> tuple[str, ...]:
    for name, accuracy in (("a", 0.5), ("b", 0.8)):
        text = {"name": name, "test_accuracy": accuracy, "num_test": 100}
        Path(f"{name}.json").write_text(json.dumps(text))
    return "a.json", "b.json"


def test_claims_are_shown_with_their_difference_and_a_report(cli, claims: tuple[str, ...]) -> None:
    ran = cli("compare", *claims, "--html", "page.html")
    assert ran.code == 0 and "0.5000" in ran.out and "0.8000" in ran.out
    assert "differences, corrected for all pairs" in ran.out and "settings that differ" not in ran.out
    assert ran.out.rstrip().endswith("report: page.html") and "b" in Path("page.html").read_text()
    assert "report:" not in cli("compare", *claims).out


def test_the_exit_code_says_whether_the_last_one_is_better_by_enough(cli, claims: tuple[str, ...]) -> None:
    assert cli("compare", *claims, "--fail-under", 0.3).code == 0
    ran = cli("compare", *claims, "--fail-under", 0.31)
    assert ran.code == 1 and "b.json is better than a.json by only 0.3000 in accuracy" in ran.err
    assert cli("compare", *reversed(claims), "--fail-under", -0.3).code == 0


def test_settings_that_differ_are_shown(cli) -> None:
    make_run("first", 0.6, 1, test=0.55, optim__lr=1e-4)
    make_run("second", 0.9, 2, test=0.85, optim__lr=1e-2)
    shown = cli("compare", "runs/first", "runs/second").out
    assert "settings that differ" in shown
    (row,) = (line.split() for line in shown.splitlines() if line.split()[:1] in (["lr"], ["optim.lr"]))
    assert row[1:] == ["0.01", "0.0001"], "the best first"


def test_unknown_settings_do_not_differ(cli, claims: tuple[str, ...]) -> None:
    make_run("first", 0.6, 1, test=0.55, optim__lr=1e-4)
    assert "settings that differ" not in cli("compare", "runs/first", claims[0]).out
    make_run("second", 0.9, 2, test=0.85, optim__lr=1e-2)
    shown = cli("compare", "runs/first", "runs/second", claims[0]).out
    assert [line.split()[1:] for line in shown.splitlines() if "unknown" in line] == [["0.01", "0.0001", "unknown"]]


def test_only_the_first_notes_are_shown(cli) -> None:
    for number in range(16):
        text = {"name": f"r{number}", "test_accuracy": 0.5 + number / 100}
        Path(f"r{number:02d}.json").write_text(json.dumps(text))
    ran = cli("compare", *(f"r{number:02d}.json" for number in range(16)))
    notes = [line for line in ran.out.splitlines() if line.startswith("note: ")]
    more = [line for line in ran.out.splitlines() if "more notes: use --json or --html to see all" in line]
    assert ran.code == 0 and len(notes) == 12 and len(more) == 1, ran.out
