"""The wall clock may jump: durations, expiry and order do not depend on it."""

import ast
import random
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from inat_ft_sweeps.base import TrialJob
from inat_ft_sweeps.folder import create, open_sweep
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.worker import run_worker

import inat_ft
from inat_ft.errors import InatFtError

TIMESTAMPS = {
    "inat_ft/crash.py": "the time of a crash",
    "inat_ft/evaluation/evaluate.py": "when a test set was evaluated",
    "inat_ft/training.py": "`created` of a record",
    "plugins/inat_ft_sweeps/attempts.py: duration of an Optuna trial": "attempts without a measured time, as killed ones",
    "plugins/inat_ft_folds/training.py": "`created` of a record",
    "plugins/inat_ft_runs/folder.py": "`created` of a run without a record",
    "plugins/inat_ft_soup/soup.py": "`created` of a record",
    "plugins/inat_ft_trackers/mlflow.py": "the time of a metric in MLflow",
}
"""The only places that read the wall clock, and what for: nothing is decided by it."""

CLOCKS = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "datetime.fromtimestamp")


def test_only_timestamps_for_people_come_from_the_wall_clock() -> None:
    root = Path(inat_ft.__file__).parents[1]
    found = set()
    for file in (file for folder in ("inat_ft", "plugins") for file in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith(CLOCKS):
                found.add(file.relative_to(root).as_posix())
            elif isinstance(node, ast.Attribute) and node.attr in ("datetime_start", "datetime_complete", "duration"):
                found.add(f"{file.relative_to(root).as_posix()}: {node.attr} of an Optuna trial")
    assert found == set(TIMESTAMPS)


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that goes back an hour with each reading, in this process and in the journals of Optuna."""
    now = datetime.now(UTC)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            nonlocal now
            now -= timedelta(hours=1)
            return now

    monkeypatch.setattr(time, "time", lambda: Jumping.now().timestamp())
    monkeypatch.setattr("optuna.storages.journal._storage.datetime", Jumping)


def small(folder: Path) -> object:
    parameters = {"epochs": {"values": [1, 2, 3, 4]}, "dropout": {"values": [0.0, 0.1, 0.2]}}
    metric = {"name": "val_accuracy", "goal": "maximize"}
    return create(parse_spec({"method": "grid", "metric": metric, "parameters": parameters}), folder, "small")


def test_a_sweep_is_the_same_while_the_clock_is_set_back(tmp_path: Path, jumping_clock) -> None:
    sweep, rng = small(tmp_path), random.Random(0)

    def objective(job: TrialJob) -> float:
        if job.name == "small-03":
            raise InatFtError("out of memory")
        return rng.random()

    while run_worker(sweep, objective, 1, lambda line: None)[0] == "waiting":
        sweep = open_sweep("small", tmp_path)
    trials = sweep.trials()
    assert [trial.state for trial in trials] == ["complete"] * 3 + ["failed"] + ["complete"] * 8
    assert [trial.attempts for trial in trials] == [1, 1, 1, 2, *[1] * 8]
    assert all(0 <= trial.seconds < 60 for trial in trials)


def test_failures_in_a_row_are_counted_in_their_order_while_the_clock_is_set_back(
    tmp_path: Path, jumping_clock
) -> None:
    sweep = small(tmp_path)

    def objective(job: TrialJob) -> float:
        if job.name > "small-01":
            raise InatFtError("the loss is nan in epoch 1")
        return 0.5

    state, why = run_worker(sweep, objective, log=lambda line: None)
    assert (state, "10 failures in a row" in why) == ("failed", True)
    assert sum(trial.attempts for trial in sweep.trials()) == 2 + 10


def test_a_run_is_the_same_while_the_clock_is_set_back(config, directories, jumping_clock) -> None:
    from inat_ft.training import train

    record, _ = train(config(), directories)
    assert [0 <= epoch.seconds < 60 for epoch in record.history] == [True, True]
    assert all(0 <= seconds < 120 for seconds in record.seconds.values())
