"""The workers of a sweep are stopped together: nothing is lost, nothing is done twice, and the results are the same."""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from inat_ft_sweeps.folder import open_sweep

from inat_ft.records import read_record

pytestmark = pytest.mark.slow

POINTS = 6
STOPS = {
    "kill workers": 128 + signal.SIGKILL,
    "terminate workers": 128 + signal.SIGTERM,
    "terminate all": 128 + signal.SIGTERM,
    "kill parent": -signal.SIGKILL,
    "interrupt all": 128 + signal.SIGINT,
}
"""Exit codes of `sweep run`, unless all trials end before the stop."""


def create(manifest_file: Path, name: str) -> None:
    fixed = {
        "data.split": str(manifest_file), "data.image_size": 32, "model.backbone": "cnn", "model.filters": 16,
        "strategy.name": "full", "optim.epochs": 8, "optim.batch_size": 8, "stop.patience": 0,
        "compute.precision": "fp32", "compute.device": "cpu",
    }  # fmt: skip
    searched = {"lr": {"values": [1e-3, 3e-3]}, "dropout": {"values": [0.0, 0.1, 0.2]}}
    spec = {
        "method": "grid",
        "metric": {"name": "val_loss", "goal": "minimize"},
        "parameters": {**{key: {"value": value} for key, value in fixed.items()}, **searched},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "inat_ft", "sweep", "create", "sweep.yaml", "--name", name]
    subprocess.run(command, check=True, capture_output=True)


def start(name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "inat_ft", "sweep", "run", name, "--workers", "2", "--quiet"]
    with Path("log.txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def children(parent: int) -> list[int]:
    """Return the workers of `sweep run`."""
    try:
        return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def results(name: str) -> list[object]:
    found = []
    for trial in open_sweep(name, Path("sweeps")).trials():
        assert (trial.state, trial.reason) == ("complete", ""), trial
        record, _ = read_record(Path("sweeps") / name / "runs" / trial.run)
        found.append([trial.params, trial.value, [e.model_dump(exclude={"seconds"}) for e in record.history]])
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_both_workers_are_stopped_together_again_and_again(manifest_file: Path) -> None:
    seed = int(os.environ.get("INAT_FT_TEST_SEED") or secrets.randbelow(10**6))
    rng = random.Random(seed)
    create(manifest_file, "whole")
    assert start("whole").wait() == 0, Path("log.txt").read_text()
    create(manifest_file, "stopped")
    codes = []
    for stop, expected in STOPS.items():
        parent, runs = start("stopped"), Path("sweeps/stopped/runs")
        deadline = time.monotonic() + 600
        while len(workers := children(parent.pid)) < 2 or not any(runs.glob("*/resume.pt")):
            assert parent.poll() is None and time.monotonic() < deadline, f"seed {seed}\n{Path('log.txt').read_text()}"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 3))
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}[stop.split()[0]]
        for process in {"workers": workers, "all": [*workers, parent.pid], "parent": [parent.pid]}[stop.split()[1]]:
            if alive(process):
                os.kill(process, number)
        codes.append((stop, parent.wait(900), len(list(runs.glob("*/record.json")))))
        assert codes[-1][1] in (expected, 0) and (codes[-1][1] or codes[-1][2] == POINTS), f"seed {seed}: {codes}"
        while any(map(alive, workers)):
            time.sleep(0.02)
        trials = open_sweep("stopped", Path("sweeps")).trials()
        assert [trial.number for trial in trials] == list(range(len(trials))), f"seed {seed}: {codes}"
        assert not any(trial.state == "failed" for trial in trials), f"seed {seed}: {codes}, {trials}"
    assert start("stopped").wait() == 0, f"seed {seed}: {codes}\n{Path('log.txt').read_text()}"
    assert "Traceback" not in Path("log.txt").read_text(), f"seed {seed}: {codes}"
    whole, stopped = results("whole"), results("stopped")
    assert len(whole) == POINTS and stopped == whole, f"seed {seed}: {codes}"
    assert len(list(Path("sweeps/stopped/runs").iterdir())) == POINTS
    assert not list(Path("sweeps/stopped").rglob("*.tmp")), f"seed {seed}: {codes}"
