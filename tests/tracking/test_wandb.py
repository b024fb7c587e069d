"""W&B's real client against a loopback server: what a run leaves there, and what happens when it is not there."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from inat_ft_wandb.tracker import WandbTracker, require_server

from inat_ft.config import TrackConfig
from inat_ft.errors import InatFtError, UsageError
from inat_ft.records import Epoch, read_record
from inat_ft.settings import load_config
from inat_ft.training import train
from tests.fake_wandb import KEY, FakeWandb

RUN = """
import json, sys
from pathlib import Path
from inat_ft.config import TrackConfig
from inat_ft.records import Epoch, RunRecord
from inat_ft.settings import load_config
from inat_ft.tracking import make_trackers

mode, directory = sys.argv[1], Path(sys.argv[2])
config = load_config(None, [("optim.lr", 1e-3), ("model.backbone", "cnn")])
first, last = map(int, sys.argv[3].split("-"))
trackers = make_trackers(TrackConfig(wandb=mode, project="birds"))
epochs = [
    Epoch(epoch=n, train_loss=1 / n, train_accuracy=0.5, val_loss=1.0, val_accuracy=acc, lr=1e-3, seconds=2.0)
    for n, acc in ((1, 0.6), (2, 0.8), (3, 0.7))
]
trackers.start(config, "first", directory, epochs[: first - 1])
for epoch in epochs[first - 1 : last]:
    trackers.log(epoch)
record = RunRecord(name="first", history=epochs, best_epoch=2, seconds={"total": 6.0}) if last == 3 else None
print(*trackers.finish(record), file=sys.stderr)
print("done")
"""


POLL_OFTEN = """
import wandb.sdk.lib.run_stopping as stopping
stopping.RunStopChecker.__init__.__kwdefaults__["poll_interval"] = 0.2
from inat_ft.cli.main import run
run()
"""


def environment(tmp_path: Path, url: str, **more: str) -> dict[str, str]:
    own = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return {**kept, **own, "OMP_NUM_THREADS": "1", **more}


def log_run(tmp_path: Path, mode: str, url: str, epochs: str = "1-3", **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, mode, str(tmp_path), epochs]
    return subprocess.run(
        command, check=False, env=environment(tmp_path, url, **more), capture_output=True, text=True, timeout=900
    )


def test_an_online_run_has_config_history_summary_and_figure(tmp_path: Path) -> None:
    with FakeWandb() as fake:
        ended = log_run(tmp_path, "online", fake.url)
    assert ended.stdout == "done\n", ended.stderr

    (run,) = fake.runs.values()
    assert run["config"]["optim"]["value"]["lr"] == 1e-3
    assert [row["val_accuracy"] for row in run["history"]] == [0.6, 0.8, 0.7]
    assert {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(run["history"][0])
    assert (run["summary"]["val_accuracy"], run["summary"]["best_epoch"], run["summary"]["total_s"]) == (0.8, 2, 6)
    assert run["exit"] == 0
    assert any(name.endswith(".png") and content.startswith(b"\x89PNG") for name, content in run["files"].items())


def test_a_resumed_run_is_continued_without_a_step_twice_or_missing(tmp_path: Path) -> None:
    with FakeWandb() as fake:
        for mode, epochs in (("online", "1-1"), ("offline", "2-2"), ("online", "3-3")):
            ended = log_run(tmp_path, mode, fake.url, epochs)
            assert ended.stdout == "done\n", ended.stderr
        (run,) = fake.runs.values()
        assert [row["_step"] for row in run["history"]] == [1, 2, 3]
        assert [row["val_accuracy"] for row in run["history"]] == [0.6, 0.8, 0.7]
        assert run["exit"] == 0


@pytest.mark.slow
def test_a_training_that_starts_again_is_another_run(tmp_path: Path) -> None:
    with FakeWandb() as fake:
        for _ in range(2):  # as after a training that was killed in its first epoch, under the same name
            assert log_run(tmp_path, "online", fake.url, "1-1").returncode == 0
        assert [len(run["history"]) for run in fake.runs.values()] == [1, 1]


@pytest.mark.slow
def test_epochs_that_wandb_has_are_not_logged_again(tmp_path: Path) -> None:
    with FakeWandb() as fake:
        for epochs in ("1-2", "2-3"):  # as after a training that was killed before it saved its second epoch
            assert log_run(tmp_path, "online", fake.url, epochs).returncode == 0
        (run,) = fake.runs.values()
        assert [row["epoch"] for row in run["history"]] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_that_is_stopped_on_its_page_says_so_and_can_be_resumed(tmp_path: Path, manifest_file: Path) -> None:
    train = ["train", "--split", str(manifest_file), "--backbone", "cnn", "--image-size", "32", "--patience", "0"]
    train += ["--set", "model.filters=16", "--epochs", "2000", "--name", "mine", "--tracker", "wandb"]
    with FakeWandb() as fake:
        fake.stop_after = 2
        env = environment(tmp_path, fake.url)
        command = [sys.executable, "-c", POLL_OFTEN, *train]
        ended = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 130 and "the run was stopped on its W&B page" in ended.stderr
    assert "--resume runs/mine" in ended.stderr and "Traceback" not in ended.stderr
    (run,) = fake.runs.values()
    epochs = [row["epoch"] for row in run["history"]]
    assert 2 <= len(epochs) < 2000 and run["exit"] == 1

    with FakeWandb() as fake:
        fake.runs[Path("runs/mine/wandb/run-id.txt").read_text().strip()] = run
        fake.stop_after = len(epochs) + 2
        command = [sys.executable, "-c", POLL_OFTEN, "train", "--resume", "mine"]
        env = environment(tmp_path, fake.url)
        subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=900)
    epochs = [row["epoch"] for row in run["history"]]
    assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) >= fake.stop_after


@pytest.mark.slow
def test_an_offline_run_asks_nobody_and_can_be_sent_later(tmp_path: Path) -> None:
    ended = log_run(tmp_path, "offline", "http://127.0.0.1:9", WANDB_API_KEY="")
    assert ended.stdout == "done\n", ended.stderr
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert f"wandb sync {folder}\n" in ended.stderr

    with FakeWandb() as fake:
        sync = [sys.executable, "-m", "wandb", "sync", "--yes", str(folder)]
        subprocess.run(sync, env=environment(tmp_path, fake.url), check=True, capture_output=True, cwd=tmp_path)
    (run,) = fake.runs.values()
    assert [row["val_accuracy"] for row in run["history"]] == [0.6, 0.8, 0.7]


def test_a_run_that_wandb_refuses_leaves_no_folder(config, directories, at) -> None:
    at("http://127.0.0.1:9")
    with pytest.raises(InatFtError, match="cannot be reached"):
        train(config(track__wandb="online"), directories)
    assert not list(directories.runs.glob("*"))


def test_off_is_silent() -> None:
    assert TrackConfig().trackers == {"files": {}}
    assert load_config().track.wandb == "off"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def go(url: str, key: str = KEY) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("WANDB_MODE", raising=False)

    return go


def test_the_preflight_passes_and_says_what_is_wrong(at) -> None:
    with FakeWandb() as fake:
        at(fake.url)
        require_server()
        at(fake.url, key="1" * 40)
        with pytest.raises(InatFtError, match="does not know this key"):
            require_server()
        at(fake.url, key="")
        with pytest.raises(UsageError, match="no W&B key for"):
            require_server()
        at("notaurl")
        with pytest.raises(UsageError, match="WANDB_BASE_URL=notaurl is not a web address"):
            require_server()
        fake.down = True
        at(fake.url)
        with pytest.raises(InatFtError, match="cannot be reached: Service Unavailable"):
            require_server()


def test_a_key_that_wandb_login_wrote_is_found(at, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {KEY}\n")
    with FakeWandb() as fake:
        at(fake.url, key="")
        require_server()


def test_a_server_that_is_down_or_mute_is_named(at) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        for url in ("http://127.0.0.1:9", f"http://127.0.0.1:{mute.getsockname()[1]}"):
            at(url)
            with pytest.raises(InatFtError, match="cannot be reached") as caught:
                require_server()
            assert "--wandb offline" in caught.value.hint


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [
        ("online", "offline", "offline"),
        ("online", "dryrun", "offline"),
        ("online", "disabled", "disabled"),
        ("offline", "online", "offline"),
        ("offline", "disabled", "disabled"),
        ("offline", "", "offline"),
    ],
)
def test_the_variable_decides_how_a_run_is_logged(monkeypatch, configured: str, variable: str, expected) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert WandbTracker(mode=configured).effective_mode == expected


def test_a_disabled_tracker_starts_nothing(monkeypatch, config, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandbTracker(mode="online")
    tracker.check()
    tracker.start(config(), "run", tmp_path / "run", [])
    tracker.log(Epoch(epoch=1, lr=1e-3, seconds=1.0))
    assert tracker.finish(None) == "" and not (tmp_path / "run").exists()


def test_an_unknown_mode_is_refused_before_a_run_folder_is_made(invoke, manifest_file: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "bogus")
    words = ("--split", manifest_file, "--backbone", "cnn", "--image-size", 32, "--set", "model.filters=16")
    ran = invoke("train", *words, "--epochs", 1, "--wandb", "online")
    assert ran.code == 2 and "WANDB_MODE=bogus is unknown" in ran.err and not Path("runs").exists()


@pytest.mark.slow
def test_a_run_has_data_parameters_and_results_and_its_evaluation_is_added(tmp_path: Path, manifest_file: Path) -> None:
    words = ["train", "--split", str(manifest_file), "--backbone", "cnn", "--image-size", "32", "--epochs", "2"]
    words += ["--set", "model.filters=16", "--name", "mine", "--tracker", "wandb"]

    def inat_ft(*words: str) -> str:
        command = [sys.executable, "-m", "inat_ft", *words]
        env = environment(tmp_path, fake.url)
        return subprocess.run(command, check=True, env=env, capture_output=True, text=True, timeout=900).stderr

    with FakeWandb() as fake:
        inat_ft(*words)
        (run,) = fake.runs.values()
        record = read_record(Path("runs/mine"))[0]
        summary = run["summary"]
        assert (
            summary["manifest_fingerprint"]
            == record.split.fingerprint
            == run["config"]["manifest_fingerprint"]["value"]
        )
        assert summary["parameters/trained"] == record.parameters.trained
        assert summary["val/accuracy"] == pytest.approx(record.val_accuracy) and summary["val/accuracy_low"] < 1
        for key, kind in (("val/confusion", "image-file"), ("val/per_class", "html-file")):
            assert summary[key]["_type"] == kind
            assert summary[key]["path"] in run["files"]
        assert b"class0" in run["files"][summary["val/per_class"]["path"]]

        assert "warning" not in inat_ft("eval", "runs/mine")
        record = read_record(Path("runs/mine"))[0]
        assert len(fake.runs) == 1 and [row["epoch"] for row in run["history"]] == [1, 2]
        assert run["summary"]["test/accuracy"] == pytest.approx(record.test.metrics["accuracy"].value)
        assert run["summary"]["test/confusion"]["path"] in run["files"] and run["summary"]["best_epoch"]

        fake.down = True
        assert "the evaluation continues" in inat_ft("eval", "runs/mine")


OUTAGE = RUN.replace("trackers.log(epoch)", "trackers.log(epoch)\n    print('logged', flush=True)\n    input()")


@pytest.mark.slow
def test_the_command_that_a_lost_server_leads_to_sends_the_run(tmp_path: Path) -> None:
    env = environment(tmp_path, "", WANDB_FINISH_TIMEOUT="3", WANDB_X_FILE_STREAM_RETRY_MAX="1")
    with FakeWandb() as fake:
        env["WANDB_BASE_URL"] = fake.url
        command = [sys.executable, "-c", OUTAGE, "online", str(tmp_path), "1-3"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=env, text=True, **pipes) as training:
            for number in range(3):
                assert training.stdout.readline() == "logged\n"
                fake.down = number == 0 or fake.down
                print(file=training.stdin, flush=True)
            warned = training.stderr.read()
        assert training.returncode == 0 and warned.count("\nwarning: ") == 1, warned
        sync = re.search(r"wandb (sync .+)", warned).group(1)

        fake.down = False
        fake.runs.clear()
        command = [sys.executable, "-m", "wandb", *shlex.split(sync), "--yes"]
        ran = subprocess.run(command, check=False, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=900)
        assert ran.returncode == 0, ran.stderr
        (run,) = fake.runs.values()
        assert [row["epoch"] for row in run["history"]] == [1, 2, 3] and run["summary"]["best_epoch"] == 2
