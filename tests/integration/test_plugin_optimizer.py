"""The example optimizer, installed as a package, trains, resumes and takes part in a sweep."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("optimizer")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "inat_ft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def history(name: str) -> list[dict[str, object]]:
    epochs = json.loads(Path(f"runs/{name}/record.json").read_text())["history"]
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in epochs]


def test_an_optimizer_plugin_trains_and_a_killed_run_resumes_to_the_same_numbers(python, manifest_file) -> None:
    arguments = ["train", "--split", manifest_file, "--backbone", "cnn", "--set", "model.filters=16", "--mode", "full"]
    arguments += ["--image-size", 32, "--precision", "fp32", "--batch-size", 8, "--epochs", 6, "--patience", 0]
    arguments += ["--optimizer", "lion", "--set", "optim.beta1=0.8"]
    whole = run(python, *arguments, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "beta1: 0.8" in Path("runs/whole/config.yaml").read_text()
    command = [python, "-m", "inat_ft", *map(str, arguments), "--name", "killed"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    checkpoint, deadline = Path("runs/killed/resume.pt"), time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = run(python, "train", "--resume", "runs/killed")
    assert resumed.returncode == 0, resumed.stderr
    assert history("killed") == history("whole")
    wrong = run(python, *arguments, "--set", "optim.betta1=0.8")
    assert wrong.returncode == 2 and "unknown key 'betta1' in optim: did you mean 'beta1'?" in wrong.stderr


def test_a_sweep_varies_the_optimizer(python, manifest_file) -> None:
    Path("sweep.yaml").write_text(
        "method: grid\nmetric: {name: val_accuracy, goal: maximize}\n"
        "parameters:\n  optimizer: {values: [adam, lion]}\n  epochs: {value: 1}\n  image_size: {value: 32}\n"
        "  backbone: {value: cnn}\n"
    )
    made = run(python, "sweep", "create", "sweep.yaml", "--set", f"split={manifest_file}", "--name", "optimizers")
    assert made.returncode == 0, made.stderr
    ran = run(python, "sweep", "run", "optimizers")
    assert ran.returncode == 0, ran.stderr
    records = [json.loads(file.read_text()) for file in Path().rglob("record.json")]
    assert sorted(record["config"]["optim"]["optimizer"] for record in records) == ["adam", "lion"]
