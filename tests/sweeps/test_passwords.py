"""Passwords of a database appear in no file, message or process list."""

import json
from pathlib import Path

import pytest
from inat_ft_sweeps.storage import without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@host/db", "postgresql://u@host/db"),
        ("postgresql://u:p@ss:w@host:5432/db", "postgresql://u@host:5432/db"),
        ("postgresql://u@host/db?password=pw&sslmode=require", "postgresql://u@host/db?sslmode=require"),
        ("postgresql://host/db?sslpassword=pw", "postgresql://host/db"),
        ("mysql://u:T0p@Secret@host", "mysql://u@host"),
        ("postgresql:/u:pw/db", "postgresql:..."),
        ("postgresql://host/db", "postgresql://host/db"),
        ("sweep.db", "sweep.db"),
    ],
)
def test_an_address_is_shown_without_its_passwords(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url",
    ["mysql://u:T0p@hunter2@host/db", "postgresql:/u:hunter2/db", "postgresql://u@127.0.0.1:1/d?password=hunter2"],
)
def test_a_refused_storage_shows_no_password(invoke, manifest_file: Path, url: str) -> None:
    fixed = ("--set", "model.backbone=cnn", "--set", f"data.split={manifest_file}")
    ran = invoke("sweep", "create", *fixed, "--name", "s", "--storage", url)
    assert ran.code in (1, 2) and "hunter2" not in ran.err + ran.out
    assert not Path("sweeps/s").exists()


def test_workers_do_not_get_the_storage_on_their_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from inat_ft_sweeps import command, worker
    from inat_ft_sweeps.base import SweepBackend, SweepState, SweepStatus

    seen: list[list[str]] = []

    class Sweep:
        id, backend = "s", SweepBackend()
        spec = type("Spec", (), {"num_trials": 2})()

        def resume(self) -> None: ...

        def pin_split(self) -> None: ...

        def status(self) -> SweepStatus:
            return SweepStatus(SweepState.FINISHED)

    monkeypatch.setenv("INAT_FT_SWEEP_STORAGE", "")
    monkeypatch.setattr(command, "open_sweep", lambda *args, **options: Sweep())
    monkeypatch.setattr(command.sweep_render, "show_end", lambda *args: None)
    monkeypatch.setattr(worker, "run_workers", lambda words, number, count: seen.append(list(words)) or 0)
    command.run(id="s", workers=2, storage="postgresql://u:hunter2@host/db")
    assert "hunter2" not in json.dumps(seen)
