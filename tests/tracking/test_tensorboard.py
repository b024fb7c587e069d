"""The event files of a run, read with TensorBoard's own reader."""

from pathlib import Path

import numpy as np
import pytest

from inat_ft.records import read_record
from inat_ft.testing import check_tracker
from inat_ft.training import train

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def events(directory: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return found.Reload()


def values(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(each.step, pytest.approx(each.value, abs=1e-5)) for each in events(directory).Scalars(tag)]


def text(directory: Path, tag: str) -> str:
    return events(directory).Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_the_contract(tmp_path: Path) -> None:
    from inat_ft_trackers.tensorboard import TensorBoard

    check_tracker(TensorBoard(), tmp_path)
    assert values(tmp_path / "complete", "loss/train") == [(1, 1.0), (2, 0.5)]
    assert values(tmp_path / "complete", "accuracy/val") == [(1, 0.4), (2, 0.6)]
    assert values(tmp_path / "failed", "loss/train") == [(1, 1.0), (2, 0.5)]


def test_a_training_and_its_evaluation_are_logged(config, directories, invoke) -> None:
    record, run = train(config(model__backbone="cnn", track__tensorboard={}, name="mine"), directories)
    history = record.history
    assert values(run, "accuracy/val") == [(epoch.epoch, epoch.val_accuracy) for epoch in history]
    assert values(run, "lr") == [(epoch.epoch, 1e-3) for epoch in history]
    assert values(run, "parameters/trained")[0][1] == record.parameters.trained
    assert values(run, "val/accuracy")[0][1] == record.val_accuracy
    assert "backbone: cnn" in text(run, "config") and record.split.fingerprint in text(run, "run")
    assert "| class0 |" in text(run, "val/per_class")
    (image,) = events(run).Images("val/confusion")
    assert image.encoded_image_string.startswith(b"\x89PNG") and image.width > 200

    assert invoke("eval", run).code == 0
    test = read_record(run)[0].test
    assert values(run, "test/accuracy")[0][1] == test.metrics["accuracy"].value
    assert len(events(run).Images("test/confusion")) == 1
    assert values(run, "accuracy/val") == [(epoch.epoch, epoch.val_accuracy) for epoch in history]


def test_a_resumed_training_replaces_the_epochs_that_were_not_saved(tmp_path: Path) -> None:
    from inat_ft_trackers.tensorboard import TensorBoard

    from inat_ft.config import RunConfig
    from inat_ft.records import Epoch

    epochs = [Epoch(epoch=n, train_loss=float(n)) for n in (1, 2, 3)]
    for history, logged in (([], epochs[:2]), (epochs[:1], [Epoch(epoch=2, train_loss=5.0), epochs[2]])):
        tracker = TensorBoard()
        tracker.start(RunConfig(), "mine", tmp_path, history)
        for epoch in logged:
            tracker.log(epoch)
        tracker.finish(None)
    assert values(tmp_path, "loss/train") == [(1, 1.0), (2, 5.0), (3, 3.0)]


def test_a_run_that_was_trained_without_it_gets_all_epochs(tmp_path: Path) -> None:
    from inat_ft_trackers.tensorboard import TensorBoard

    from inat_ft.config import RunConfig
    from inat_ft.records import Epoch

    tracker = TensorBoard()
    tracker.start(RunConfig(), "mine", tmp_path, [Epoch(epoch=1, train_loss=2.0)])
    tracker.log(Epoch(epoch=2, train_loss=1.0))
    assert "tensorboard --logdir" in tracker.finish(None)
    assert values(tmp_path, "loss/train") == [(1, 2.0), (2, 1.0)]
    assert np.isfinite([value.value for value in events(tmp_path).Scalars("loss/train")]).all()


@pytest.mark.slow
def test_several_trackers_log_one_training(cli, manifest_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["--split", manifest_file, "--backbone", "cnn", "--image-size", 32, "--epochs", 1, "--name", "mine"]
    ran = cli("train", *words, "--set", "model.filters=16", "--tracker", "wandb,tensorboard")
    assert ran.code == 0, ran.err
    assert "tensorboard --logdir runs" in ran.err and "wandb sync" in ran.err
    assert len(events(Path("runs/mine")).Scalars("accuracy/val")) == 1
    assert list(Path("runs/mine/wandb").glob("offline-run-*/*.wandb"))
