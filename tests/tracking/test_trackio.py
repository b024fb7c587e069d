"""What a run leaves in Trackio's database, read with Trackio's own storage."""

import sys
from pathlib import Path

import pytest

from inat_ft.errors import InatFtError
from inat_ft.records import Epoch, read_record
from inat_ft.testing import check_tracker
from inat_ft.training import train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trackio's storage in a folder of this test: the package reads TRACKIO_DIR when it is imported."""
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    import trackio

    return trackio.SQLiteStorage


def steps(storage, name: str, metric: str) -> list[tuple[int, float]]:
    return [(each["step"], pytest.approx(each[metric])) for each in storage.get_logs("inat-ft", name) if metric in each]


def test_the_contract(storage, tmp_path: Path) -> None:
    from inat_ft_trackers.trackio import Trackio

    check_tracker(Trackio(), tmp_path)
    records = storage.get_run_records("inat-ft")
    assert [steps(storage, each["name"], "train_loss") for each in records] == [[(1, 1.0), (2, 0.5)]] * len(records)


def test_a_training_and_its_evaluation_are_logged(storage, config, directories, invoke) -> None:
    record, run = train(config(model__backbone="cnn", track__trackio={}, name="mine"), directories)
    assert steps(storage, "mine", "val_accuracy") == [(epoch.epoch, epoch.val_accuracy) for epoch in record.history]
    assert storage.get_run_config("inat-ft", "mine")["model.backbone"] == "cnn"
    assert steps(storage, "mine", "parameters/trained") == [(record.best_epoch, record.parameters.trained)]
    assert steps(storage, "mine", "val/accuracy") == [(record.best_epoch, record.val_accuracy)]

    assert invoke("eval", run).code == 0
    test = read_record(run)[0].test
    assert steps(storage, "mine", "test/accuracy") == [(record.best_epoch, test.metrics["accuracy"].value)]
    assert len(storage.get_run_records("inat-ft")) == 1
    pictures = [key for each in storage.get_logs("inat-ft", "mine") for key in each if "confusion" in key]
    assert pictures == ["val/confusion", "test/confusion"]


def test_a_resumed_training_continues_its_run_with_every_epoch_once(storage, tmp_path: Path) -> None:
    from inat_ft_trackers.trackio import Trackio

    from inat_ft.config import RunConfig

    epochs = [Epoch(epoch=n, train_loss=float(n)) for n in (1, 2, 3)]
    for history, logged in (([], epochs[:2]), (epochs[:1], epochs[1:])):
        tracker = Trackio()
        tracker.start(RunConfig(), "mine", tmp_path, history)
        for epoch in logged:
            tracker.log(epoch)
        assert "trackio show" in tracker.finish(None)
    assert steps(storage, "mine", "train_loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert len(storage.get_run_records("inat-ft")) == 1


def test_another_run_of_the_same_name_gets_no_foreign_epochs(storage, tmp_path: Path) -> None:
    from inat_ft_trackers.trackio import Trackio

    from inat_ft.config import RunConfig

    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        tracker = Trackio()
        tracker.start(RunConfig(), "mine", tmp_path / folder, [])
        tracker.log(Epoch(epoch=1, train_loss=1.0))
        tracker.finish(None)
    with pytest.raises(InatFtError, match="is another one") as refused:
        Trackio().start(RunConfig(), "mine", tmp_path / "first", [Epoch(epoch=1, train_loss=1.0)])
    assert "track.trackio.project" in refused.value.hint
