import json
import os
from pathlib import Path

import pytest

STRATEGY = "[inat_ft.strategies]\nbroken = no_such_module:Nothing\n"


def test_the_checks_say_what_is_found_and_what_to_do(cli) -> None:
    ran = cli("doctor")
    assert ran.code == 0, ran.err
    assert "inat-ft split DATA" in ran.out and "resnet50" in ran.out
    detail = {each["what"]: each for each in json.loads(cli("doctor", "--json").out)}
    assert detail["versions"]["state"] == detail["device"]["state"] == detail["runs"]["state"] == "ok"
    assert detail["weights"]["state"] == "note" and str(Path("torch").resolve()) in detail["weights"]["hint"]
    assert not Path("runs").exists() and not Path("cache").exists()  # no file is left behind


def test_a_folder_that_cannot_be_written_is_a_problem(cli) -> None:
    Path("file").write_text("")
    ran = cli("doctor", "--cache-dir", "file/cache")
    assert ran.code == 1 and "cannot be written" in ran.out and "--cache-dir" in ran.out


def test_a_broken_plugin_is_a_problem(process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "bad-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(STRATEGY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    ran = process("doctor")
    assert (
        ran.code == 1 and "'broken' of package 'bad' cannot be imported" in ran.out and "pip uninstall bad" in ran.out
    )
