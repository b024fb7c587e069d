"""What a run leaves in an MLflow store, read with MLflow's own client."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inat_ft_trackers.mlflow import Mlflow

from inat_ft.config import RunConfig
from inat_ft.errors import InatFtError, UsageError
from inat_ft.records import Epoch, read_record
from inat_ft.testing import check_tracker
from inat_ft.training import train


def test_a_server_that_is_down_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inat_ft_trackers.mlflow.find_spec", lambda name: object())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(InatFtError, match="cannot be reached") as refused:
            Mlflow(uri=address).check()
    assert "track.mlflow.uri" in refused.value.hint


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from inat_ft_trackers.tensorboard import TensorBoard
    from inat_ft_trackers.trackio import Trackio

    for module, tracker in (("mlflow", Mlflow()), ("tensorboard", TensorBoard()), ("trackio", Trackio())):
        monkeypatch.setattr(f"inat_ft_trackers.{module}.find_spec", lambda name: None)
        with pytest.raises(UsageError, match=f"needs the package {module}") as refused:
            tracker.check()
        assert refused.value.hint == f"pip install 'inat-ft[{module}]'"


class TestWithMlflow:
    pytestmark = pytest.mark.filterwarnings("ignore")

    @pytest.fixture
    def client(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        mlflow = pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        return mlflow.MlflowClient()

    def run(self, client, directory: Path):
        return client.get_run((directory / ".mlflow-run-id").read_text().strip())

    def steps(self, client, directory: Path, name: str) -> list[tuple[int, float]]:
        found = client.get_metric_history(self.run(client, directory).info.run_id, name)
        return sorted((each.step, each.value) for each in found)

    def test_the_contract(self, client, tmp_path: Path) -> None:
        (tmp_path / "complete").mkdir()
        (tmp_path / "complete" / "config.yaml").write_text("seed: 0\n")
        (tmp_path / "failed").mkdir()
        (tmp_path / "failed" / "config.yaml").write_text("seed: 0\n")
        check_tracker(Mlflow(), tmp_path)
        assert self.steps(client, tmp_path / "complete", "train_loss") == [(1, 1.0), (2, 0.5)]
        assert self.steps(client, tmp_path / "failed", "val_accuracy") == [(1, 0.4), (2, 0.6)]
        assert self.run(client, tmp_path / "failed").info.status == "FINISHED"

    def test_a_training_and_its_evaluation_are_logged(self, client, config, directories, invoke) -> None:
        settings = {"track__mlflow": {"experiment": "birds"}, "name": "mine"}
        record, directory = train(config(model__backbone="cnn", **settings), directories)
        run = self.run(client, directory)
        assert client.get_experiment(run.info.experiment_id).name == "birds"
        assert run.info.run_name == "mine" and run.info.status == "FINISHED"
        assert run.data.params["model.backbone"] == "cnn" and run.data.params["optim.lr"] == "0.001"
        assert run.data.tags["manifest_fingerprint"] == record.split.fingerprint
        assert run.data.metrics["parameters/trained"] == record.parameters.trained
        assert run.data.metrics["val/accuracy"] == pytest.approx(record.val_accuracy)
        history = [(epoch.epoch, pytest.approx(epoch.val_accuracy)) for epoch in record.history]
        assert self.steps(client, directory, "val_accuracy") == history

        assert invoke("eval", directory).code == 0
        run, test = self.run(client, directory), read_record(directory)[0].test
        assert run.data.metrics["test/accuracy"] == pytest.approx(test.metrics["accuracy"].value)
        assert run.info.status == "FINISHED"
        files = {each.path for each in client.list_artifacts(run.info.run_id)}
        assert files >= {"curves.png", "config.yaml", "confusion-val.png", "confusion-test.png", "per_class-test.csv"}

    @pytest.mark.slow
    def test_a_server_gets_the_run(self, client, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", "artifacts"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, **quiet, cwd=tmp_path, start_new_session=True)  # it starts other processes
        try:
            deadline = time.monotonic() + 600
            while True:
                try:
                    Mlflow(uri=uri).check()
                    break
                except InatFtError:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            for name in ("complete", "failed"):
                (tmp_path / name).mkdir()
                (tmp_path / name / "config.yaml").write_text("seed: 0\n")
            check_tracker(Mlflow(uri=uri), tmp_path)
            remote = type(client)(uri)
            assert self.steps(remote, tmp_path / "failed", "val_accuracy") == [(1, 0.4), (2, 0.6)]
            files = {each.path for each in remote.list_artifacts(self.run(remote, tmp_path / "complete").info.run_id)}
            assert files == {"config.yaml", "curves.png"}
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(900)

    def test_a_resumed_training_continues_its_run_with_every_epoch_once(self, client, tmp_path: Path) -> None:
        epochs = [Epoch(epoch=n, train_loss=float(n)) for n in (1, 2, 3)]
        for history, logged in (([], epochs[:2]), (epochs[:1], epochs[1:])):
            tracker = Mlflow()
            tracker.start(RunConfig(), "mine", tmp_path, history)
            for epoch in logged:
                tracker.log(epoch)
            tracker.finish(None)
        assert self.steps(client, tmp_path, "train_loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
        assert self.run(client, tmp_path).info.status == "FAILED"
        assert len(client.search_runs(["1"])) == 1
