"""`inat-ft sweep` as a user meets it, on real images and a real, tiny network."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from inat_ft_sweeps.folder import create, only_sweep, open_sweep
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.worker import run_worker

from inat_ft.cli import main

SPEC = """
method: bayes
metric: {name: val_accuracy, goal: maximize}
run_cap: 3
parameters:
  learning_rate: {values: [1e-2, 1e-3]}
  dropout: {values: [0, 0.3]}
  epochs: {value: 2}
"""


@dataclass
class Ended:
    stdout: str
    stderr: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*words: str, expect: int = 0) -> Ended:
        monkeypatch.setattr(sys, "argv", ["inat-ft", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.run()
        shown = Ended(*capsys.readouterr())
        assert (ended.value.code or 0) == expect, shown
        return shown

    return call


@pytest.fixture
def fixed(manifest_file: Path) -> list[str]:
    settings = {
        "data.split": str(manifest_file),
        "data.image_size": "32",
        "model.backbone": "cnn",
        "model.filters": "16",
        "mode": "head",
        "compute.precision": "fp32",
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def test_create_run_status_best_report_stop(cli, fixed, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SPEC)
    made = cli("sweep", "create", "sweep.yaml", "--name", "tiny", *fixed)
    assert made.stdout.splitlines() == ["id:   tiny", "next: inat-ft sweep run tiny"]
    assert "3 trials of 4 points" in made.stderr
    assert "1 more trial (run_cap: 4) would try every point" in made.stderr
    assert "the sweep is on this machine (backend local); to create it at W&B use --backend wandb" in made.stderr

    ran = cli("sweep", "run", "--count", "2")
    assert ran.stdout.startswith("waiting: 2 trials done, as requested by --count")
    ran = cli("sweep", "run", "--cache-dir", "my cache")
    assert ran.stdout.startswith("finished: run_cap is reached")
    assert "next: inat-ft sweep best tiny --cache-dir 'my cache', inat-ft sweep report tiny" in ran.stderr

    status = json.loads(cli("sweep", "status", "--json").stdout)
    assert (status["id"], status["state"]) == ("tiny", "finished")
    assert [trial["state"] for trial in status["trials"]] == ["complete"] * 3
    assert len({tuple(trial["params"].values()) for trial in status["trials"]}) == 3
    assert all(0 <= trial["value"] <= 1 for trial in status["trials"])
    trial = status["trials"][0]
    record = json.loads((tmp_path / trial["run"] / "record.json").read_text())
    assert record["val_accuracy"] == trial["value"]
    assert record["test"] is None
    assert record["config"]["optim"]["lr"] == trial["params"]["learning_rate"]

    assert "run_cap is reached" in cli("sweep", "status").stdout
    best = json.loads(cli("sweep", "best", "--json").stdout)
    assert best["best"]["value"] == max(trial["value"] for trial in status["trials"])
    assert best["best"]["number"] in [not_significantly_worse["number"] for not_significantly_worse in best["tied"]]
    assert best["test_accuracy"] is None
    again = best["best"]["command"].replace("inat-ft ", "").split()
    rerun = json.loads(cli(*again, "--json").stdout)
    assert rerun["val_accuracy"] == best["best"]["value"]  # a trial is a command that can be pasted

    written = cli("sweep", "report").stdout.splitlines()
    assert written[0] == "sweeps/tiny/report/report.html"
    assert all((tmp_path / file).is_file() for file in written)
    assert [found["id"] for found in json.loads(cli("sweep", "list", "--json").stdout)] == ["tiny"]
    assert cli("sweep", "stop").stdout == "stopped: tiny\n"


def test_best_trains_evaluates_and_confirms(cli, fixed, manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SPEC.replace("run_cap: 3", "run_cap: 2"))
    cli("sweep", "create", "sweep.yaml", *fixed)
    cli("sweep", "run")
    ledger = manifest_file.with_name(f"{manifest_file.name}.looks.jsonl")
    looks = len(ledger.read_text().splitlines()) if ledger.exists() else 0

    best = json.loads(cli("sweep", "best", "--json", "--confirm", "1", "--seeds", "2").stdout)
    (replication,) = best["confirmed"]
    assert len(replication["values"]) == 3
    assert replication["mean"] == pytest.approx(sum(replication["values"][1:]) / 2)
    assert (len(ledger.read_text().splitlines()) if ledger.exists() else 0) == looks

    sweep = open_sweep(only_sweep(Path("sweeps")), Path("sweeps"))
    first, second = sweep.best()
    sweep.study.set_user_attr("confirmed", {str(first.number): [1.0, 0.1], str(second.number): [1.0, 0.2]})
    found = json.loads(cli("sweep", "best", "--json").stdout)
    assert (found["best"]["number"], Path(found["directory"]).name) == (second.number, second.run)
    shown = cli("sweep", "best")
    assert f"best by the mean of the new seeds: trial {second.number}" in shown.stdout
    assert shown.stderr.splitlines()[-1] == f"next: inat-ft sweep best {sweep.id} --eval"
    trained = cli("sweep", "best", "--train")
    assert trained.stderr.splitlines()[-1].startswith("next: inat-ft eval runs/")
    assert "--seeds requires --confirm" in cli("sweep", "best", "--seeds", "3", expect=2).stderr

    best = json.loads(cli("sweep", "best", "--json", "--train", "--eval").stdout)
    assert Path(best["directory"]).parent == Path("runs")
    record = json.loads((tmp_path / best["directory"] / "record.json").read_text())
    assert record["test_accuracy"] == best["test_accuracy"]
    assert len(ledger.read_text().splitlines()) == looks + 1
    assert f"(test set evaluated {looks + 2} times)" in cli("sweep", "best", "--eval").stdout


def test_a_sweep_of_failures_is_a_failure(cli, manifest_file: Path) -> None:
    values = {"data.split": str(manifest_file), "data.image_size": 32, "backbone": "resnet18", "weights": "none"}
    fixed = {key: {"value": value} for key, value in (values | {"mode": "partial"}).items()}
    parameters = {**fixed, "unfreeze_from": {"values": ["layer8", "layer9"]}}
    create(parse_spec({"method": "grid", "parameters": parameters}), Path("sweeps"), "bad")

    ran = cli("sweep", "run", "bad", expect=1)
    assert "no trial of sweep bad has succeeded; the last error: unknown stage 'layer9' for resnet18" in ran.stderr
    assert "it has: conv1 bn1" in ran.stderr and "inat-ft sweep run bad" in ran.stderr
    assert "failed after 1 attempt: trial 0" in ran.stderr


def test_a_sweep_at_its_target_has_no_time_left_and_is_listed(cli) -> None:
    assert "no sweeps in sweeps" in cli("sweep", "list").stderr
    goal = {"name": "val_accuracy", "goal": "maximize", "target": 0.5}
    spec = {"method": "grid", "metric": goal, "parameters": {"lr": {"values": [0.1, 0.2]}}}
    sweep = create(parse_spec(spec), Path("sweeps"), "quick")
    run_worker(sweep, lambda job: 0.75, log=lambda line: None)

    shown = cli("sweep", "status", "quick").stdout
    assert "a trial reached the target" in shown
    assert "\n1 complete\n" in shown
    (listed,) = json.loads(cli("sweep", "list", "--json").stdout)
    assert (listed["state"], listed["trials"], listed["best"]) == ("finished", "1 of 2", "0.7500")


def test_what_the_network_or_the_disk_does_not_have_is_refused_at_once(cli, fixed) -> None:
    (Path() / "sweep.yaml").write_text("method: grid\nparameters: {unfreeze_from: {values: [block4, block9]}}\n")
    refused = cli("sweep", "create", "sweep.yaml", *fixed, "--set", "mode=partial", expect=2).stderr
    assert "unknown stage 'block9' for cnn" in refused and "the trial: " in refused
    assert "no such split: nope.csv" in cli("sweep", "create", "--set", "data.split=nope.csv", expect=2).stderr
    assert not Path("sweeps").exists()


@pytest.mark.slow
def test_workers_share_the_trials_and_a_killed_one_is_replaced(cli, fixed, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SPEC.replace("run_cap: 3", "run_cap: 4"))
    cli("sweep", "create", "sweep.yaml", "--name", "pair", *fixed)
    command = [sys.executable, "-m", "inat_ft", "sweep", "run", "pair", "--workers", "2"]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not list(tmp_path.glob("sweeps/pair/trials/*.lock")):
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    out, _ = parent.communicate(timeout=900)
    assert out.count("best: ") <= 1  # one process reports the end

    if json.loads(cli("sweep", "status", "pair", "--json").stdout)["state"] != "finished":
        cli("sweep", "run", "pair")
    trials = json.loads(cli("sweep", "status", "pair", "--json").stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 4
    assert len({tuple(trial["params"].values()) for trial in trials}) == 4


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["create", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["create", "--set", "optim.lr=-1"], "optim.lr: -1 is not greater than 0"),
        (["create", "--set", "lrr=1"], "unknown key 'lrr': did you mean 'lr'?"),
        (["create", "--name", "a b"], "--name a b"),
        (["create", "--storage", "sqlite:///x.db"], "with SQLite, two workers can run the same trial"),
        (["run"], "no sweeps in sweeps"),
        (["status", "abc"], "no sweep 'abc' in sweeps"),
    ],
)
def test_what_is_typed_wrongly_is_named(cli, words: list[str], named: str) -> None:
    assert named in cli("sweep", *words, expect=2).stderr


def test_a_wandb_sweep_that_cannot_be_is_refused_at_once(cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in cli("sweep", "create", "--backend", "wandb", expect=1).stderr
    monkeypatch.setenv("WANDB_MODE", "offline")
    refused = cli("sweep", "create", "--backend", "wandb", expect=2).stderr
    assert "WANDB_MODE=offline" in refused
    assert "--backend local" in refused


def test_a_sweep_without_an_end_asks_for_a_count(cli, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("method: random\nparameters: {lr: {min: 0.001, max: 0.1}}\n")
    assert "no run_cap" in cli("sweep", "create", "sweep.yaml").stderr
    assert "this sweep has no limit" in cli("sweep", "run", expect=2).stderr
