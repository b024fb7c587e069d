"""W&B's backend, end to end with the real client: sweeps made here and elsewhere, and servers that go away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from inat_ft_sweeps.folder import create, open_sweep
from inat_ft_sweeps.parsing import read_spec

from tests.fake_wandb import FakeWandb
from tests.tracking.test_wandb import environment

AGENT = """
import sys, time
from pathlib import Path
import wandb.agents.pyagent
from inat_ft.records import Epoch, RunRecord
from inat_ft.settings import load_config
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.parsing import read_spec
from inat_ft_sweeps.render import open_sweep
from inat_ft_wandb.sweep_backend import Wandb
from inat_ft.errors import InatFtError
from inat_ft.tracking import make_trackers

wandb.agents.pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.05
folder, what, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def objective(job):
    config = load_config(None, job.overrides)
    if config.optim.lr == 1e-5:
        raise InatFtError("the loss is nan")
    tracker = make_trackers(config.track)
    tracker.start(config, job.name, folder, [])
    epochs = [Epoch(epoch=n, train_loss=1.0, val_accuracy=0.5 + config.optim.lr) for n in (1, 2)]
    for epoch in epochs:
        tracker.log(epoch)
        if what == "lost":
            (folder / "lost").touch()
            time.sleep(0.5)
        if what.endswith("/slow") and config.optim.lr == 1e-3:
            for _ in range(600):
                time.sleep(0.05)
    tracker.finish(RunRecord(name=job.name, history=epochs, best_epoch=1))
    return 0.5 + config.optim.lr

if "/" in what:
    sweep = open_sweep(what, folder, None, adopt=True)
else:
    spec = read_spec(None)
    address = Wandb().create(spec, "proj", None)
    sweep = create(spec, folder, address.split("/")[-1], backend="wandb", address=address)
print(Wandb().run(sweep, objective, count, lambda line: print(line, file=sys.stderr)).message)
"""


def run_agent(folder: Path, what: str, count: int, fake: FakeWandb, **more: str):
    command = [sys.executable, "-c", AGENT, str(folder), what, str(count)]
    env = environment(folder, fake.url, WANDB_DIR=str(folder), WANDB_FINISH_TIMEOUT="2", **more)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


def test_a_sweep_made_here(tmp_path: Path) -> None:
    points = [
        {"lr": 1e-3, "epochs": 5, "mode": "head", "unfreeze_from": "layer3", "lora.lr": 1e-5},
        {"lr": 1e-5, "epochs": 5},
        {"learning_rate": "1e-4", "epochs": 10},
    ]
    with FakeWandb(points) as fake:
        out, errors = run_agent(tmp_path, "new", 3, fake).communicate(timeout=900)
    assert "3 runs done, as requested by --count" in out, errors

    assert fake.sweeps["sweep1"]["parameters"]["lr"] == {"values": [1e-3, 1e-4]}
    assert fake.sweeps["sweep1"]["run_cap"] == 22
    good, failed = fake.runs["run1"], fake.runs["run2"]
    assert (good["sweep"], good["exit"], failed["exit"]) == ("sweep1", 0, 1)
    assert [row["val_accuracy"] for row in good["history"]] == [0.501, 0.501]
    assert good["config"]["lr"]["value"] == 1e-3
    sweep = open_sweep("sweep1", tmp_path)
    assert sweep.address == "me/proj/sweep1"
    assert [(trial.state, trial.value) for trial in sweep.trials()] == [
        ("complete", 0.501),
        ("failed", None),
        ("complete", pytest.approx(0.5001)),
    ]
    assert sweep.trials()[0].params == {"lr": 1e-3, "epochs": 5}  # what does not count for the mode is left out
    assert sweep.trials()[1].reason == "the loss is nan"


def test_a_sweep_made_elsewhere(tmp_path: Path) -> None:
    with FakeWandb([{"optim": {"lr": 0.01}}]) as fake:
        out, errors = run_agent(tmp_path, "them/theirs/abc", 1, fake).communicate(timeout=900)
    assert "1 run done" in out, errors

    (trial,) = open_sweep("abc", tmp_path).trials()
    assert (trial.params, trial.value) == ({"optim.lr": 0.01}, 0.51)


@pytest.mark.slow
def test_an_agent_that_is_killed_costs_no_finished_run(tmp_path: Path) -> None:
    with FakeWandb([{"lr": 1e-3}, {"lr": 1e-4}, {"lr": 1e-2}]) as fake:
        agent = run_agent(tmp_path, "me/proj/abc", 3, fake)
        while "run1" not in fake.runs or fake.runs["run1"]["exit"] is None:
            assert agent.poll() is None, agent.communicate()[1]
            os.sched_yield()
        agent.kill()
        agent.communicate()
        assert [row["val_accuracy"] for row in fake.runs["run1"]["history"]] == [0.501, 0.501]


@pytest.mark.slow
def test_a_server_lost_in_the_middle_costs_no_run(tmp_path: Path) -> None:
    with FakeWandb([{"lr": 1e-3}, {"lr": 1e-4}]) as fake:
        impatient = {
            "WANDB__GRAPHQL_RETRY_MAX": "1",
            "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "1",
            "WANDB_HTTP_TIMEOUT": "2",
        }
        agent = run_agent(tmp_path, "lost", 2, fake, **impatient)
        while not (tmp_path / "lost").exists():
            assert agent.poll() is None, agent.communicate()[1]
            os.sched_yield()
        fake.down = True
        _, errors = agent.communicate(timeout=900)

    assert "assigns no more runs" in errors
    (trial,) = open_sweep("sweep1", tmp_path).trials()
    assert (trial.state, trial.value) == ("complete", 0.501)


@pytest.mark.slow
def test_stop_ends_the_sweep_at_wandb_and_says_when_that_fails(tmp_path: Path) -> None:
    def sweep(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "inat_ft", "sweep", *words]
        env = environment(tmp_path, fake.url, WANDB_DIR=str(tmp_path))
        return subprocess.run(command, check=False, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=900)

    create(read_spec(None), tmp_path / "sweeps", "sweep1", backend="wandb", address="me/proj/sweep1")
    with FakeWandb() as fake:
        fake.states["sweep1"] = "RUNNING"
        stopped = sweep("stop")
        assert (stopped.stdout, fake.states) == ("stopped: sweep1\n", {"sweep1": "FINISHED"}), stopped.stderr
        fake.states.clear()
        refused = sweep("stop")
    assert refused.returncode == 1
    assert "W&B did not stop me/proj/sweep1: " in refused.stderr
    assert "not found" in refused.stderr


@pytest.mark.slow
def test_a_run_stopped_from_the_page_ends_in_one_sentence(tmp_path: Path) -> None:
    with FakeWandb([{"lr": 1e-3}]) as fake:
        agent = run_agent(tmp_path, "me/proj/slow", 1, fake)
        while not fake.runs.get("run1", {}).get("history"):
            assert agent.poll() is None, agent.communicate()[1]
            os.sched_yield()
        fake.stop = "run1"
        out, errors = agent.communicate(timeout=900)

    assert "1 run done" in out, errors
    assert "run run1 was stopped from W&B's page" in errors
    assert "Traceback" not in errors and "errored" not in errors
    (stopped,) = open_sweep("slow", tmp_path).trials()
    assert (stopped.state, stopped.reason) == ("failed", "stopped from W&B's page")
