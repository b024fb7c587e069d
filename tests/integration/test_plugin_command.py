"""The example command, installed as a package, is listed and runs; broken commands are named and break nothing else."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("command")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "inat_ft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_command_plugin_is_listed_and_runs(python: Path, tmp_path: Path) -> None:
    assert "List the runs by the number of trained epochs." in " ".join(run(python, "--help").stdout.split())
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "record.json").write_text('{"name": "a", "test_accuracy": 0.5, "num_test": 10}')
    ran = run(python, "epochs", "--runs-dir", tmp_path / "runs")
    assert (ran.returncode, ran.stdout.split()) == (0, ["0", "a"]), ran.stderr


def test_broken_commands_are_named_and_break_nothing_else(python: Path) -> None:
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    info = site / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[inat_ft.commands]\nbad = nowhere:f\nsweep.bad = nowhere:f\ntrain = nowhere:f\n"
    )
    try:
        for words in (("bad",), ("sweep", "bad")):
            ran = run(python, *words)
            assert ran.returncode == 1 and "of package 'broken'" in ran.stderr and "Traceback" not in ran.stderr
        assert "cannot be imported" in " ".join(run(python, "--help").stdout.replace("│", " ").split())
        assert run(python, "train", "--help").returncode == 0 and run(python, "sweep", "list").returncode == 0
    finally:
        for file in info.iterdir():
            file.unlink()
        info.rmdir()
