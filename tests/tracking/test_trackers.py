"""Several trackers of one run: one that fails is reported once and disturbs neither the training nor the others."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr

from inat_ft.config import RunConfig, TrackConfig
from inat_ft.errors import ConfigError, InatFtError
from inat_ft.records import Epoch
from inat_ft.settings import load_config
from inat_ft.tracking import Tracker, Trackers
from inat_ft.training import train

EPOCHS = [Epoch(epoch=number) for number in (1, 2, 3)]


class Memory(Tracker):
    fails: str = ""
    error: Any = None
    _calls: list[str] = PrivateAttr(default_factory=list)

    def _call(self, name: str) -> None:
        self._calls.append(name)
        if name == self.fails:
            raise self.error

    def start(self, config, name, directory, history) -> None:
        self._call(f"start after {len(history)}")

    def log(self, epoch) -> None:
        self._call(f"log {epoch.epoch}")

    def finish(self, record) -> str:
        self._call("finish")
        return f"{self._calls.count('finish')} finished"


def log_run(*trackers: Memory) -> list[str]:
    together = Trackers(trackers)
    together.start(RunConfig(), "mine", Path("runs/mine"), EPOCHS[:1])
    for epoch in EPOCHS[1:]:
        together.log(epoch)
    return together.finish(None)


@pytest.mark.parametrize(
    ("fails", "calls", "lines"),
    [
        ("start after 1", ["start after 1"], 1),
        ("log 2", ["start after 1", "log 2", "finish"], 2),
        ("finish", ["start after 1", "log 2", "log 3", "finish"], 1),
    ],
)
def test_a_tracker_that_fails_is_reported_once(capsys, fails: str, calls: list[str], lines: int) -> None:
    bad, good = Memory(fails=fails, error=OSError("disk on fire")), Memory()
    assert log_run(bad, good) == ["1 finished"] * lines
    assert bad._calls == calls and good._calls == ["start after 1", "log 2", "log 3", "finish"]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and warning.startswith("warning: tracker") and "OSError: disk on fire" in warning


def test_the_message_of_a_tracker_is_shown_as_it_is(capsys) -> None:
    log_run(Memory(fails="log 2", error=InatFtError("the project is full", "delete a run")))
    assert capsys.readouterr().err == "warning: the project is full; the training continues: delete a run\n"


def test_the_exception_that_stops_a_trial_of_a_sweep_passes() -> None:
    with pytest.raises(Exception) as stop:
        log_run(Memory(fails="log 2", error=Exception()))
    assert type(stop.value) is Exception and not stop.value.args


def test_a_training_continues_when_its_tracker_fails(config, directories, monkeypatch, capsys) -> None:
    bad = Memory(fails="log 1", error=ValueError("not now"))
    monkeypatch.setattr("inat_ft.training.make_trackers", lambda track: Trackers([bad]))
    record, _ = train(config(model__backbone="cnn"), directories)
    assert len(record.history) == 2 and bad._calls == ["start after 0", "log 1", "finish"]
    assert "not now" in capsys.readouterr().err


def test_options_select_and_remove_trackers() -> None:
    chosen = load_config(None, [("track.wandb", {}), ("track.project", "birds"), ("track.files", False)])
    assert chosen.track.trackers == {"wandb": {"mode": "online", "project": "birds", "entity": None}}
    assert not TrackConfig.model_validate({"mlflow": None, "files": False}).trackers
    for track, message in (
        ({"projct": "birds"}, "unknown key 'projct' in track: did you mean 'project'?"),
        ({"wandbb": {}}, "unknown tracker 'wandbb': did you mean 'wandb'?"),
    ):
        with pytest.raises(ConfigError) as refused:
            TrackConfig.model_validate(track)
        assert refused.value.message == message
