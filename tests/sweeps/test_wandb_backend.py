"""How W&B's agent and the local study work together, with a stand-in for the client. `test_wandb.py` uses the real one."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.study import Sweep
from inat_ft_wandb import sweep_backend
from inat_ft_wandb.sweep_backend import Wandb

from inat_ft.errors import InatFtError, UsageError

SPEC = {"method": "random", "parameters": {"lr": {"min": 1e-5, "max": 1e-1}, "epochs": {"value": 3}}}


class Client:
    """A stand-in for the module `wandb`, whose agent assigns some points."""

    class Error(Exception):
        pass

    def __init__(self, *points: Mapping[str, Any]) -> None:
        self.points, self.exits, self.raised = list(points), [], []
        self.places: list[tuple[str, str | None, str | None]] = []
        self.sweep: Callable[..., str] = lambda spec, entity, project: "abc"

    def agent(self, id: str, function: Callable[[], None], entity: str | None, project: str | None, count: int) -> None:
        self.places.append((id, entity, project))
        if self.points:
            try:
                function()
            except Exception as error:  # the real agent prints it
                self.raised.append(error)

    def init(self, settings: object) -> SimpleNamespace:
        number = len(self.places)
        return SimpleNamespace(
            id=f"r{number}",
            config=self.points.pop(0),
            finish=lambda exit_code: self.exits.append((number, exit_code)),
        )

    def Settings(self, **settings: object) -> Mapping[str, object]:
        return settings


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch):
    def make(*points: Mapping[str, Any]) -> Client:
        made = Client(*points)
        monkeypatch.setitem(sys.modules, "wandb", made)
        monkeypatch.setattr(sweep_backend, "require_server", lambda: None)
        for name in ("WANDB_MODE", "WANDB_ENTITY", "WANDB_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        return made

    return make


def adopted(address: str = "me/birds/abc") -> Sweep:
    return create(parse_spec(SPEC), Path("sweeps"), "abc", backend="wandb", address=address)


def run(sweep: Sweep, objective: Callable[[dict[str, Any]], float], count: int | None = None):
    lines: list[str] = []
    return Wandb().run(sweep, lambda job: objective(dict(job.overrides)), count, lines.append), lines


def test_points_are_trained_with_what_applies_to_their_mode(client) -> None:
    made = client(
        {"lr": 1e-3, "epochs": 3, "mode": "head", "unfreeze_from": "layer3"},
        {"optim": {"lr": 1e-2}, "strategy": {"name": "partial"}, "unfreeze_from": "layer3"},
    )
    seen = []
    status, lines = run(sweep := adopted(), lambda settings: seen.append(settings) or settings["optim.lr"], 2)
    assert status == ("waiting", "2 runs done, as requested by --count")
    assert lines == ["run r1: val_accuracy 0.0010", "run r2: val_accuracy 0.0100"]
    assert made.places == [("abc", "me", "birds")] * 2
    assert "strategy.unfreeze_from" not in seen[0] and seen[1]["strategy.unfreeze_from"] == "layer3"
    assert all(settings["track.wandb"] == "online" for settings in seen)
    assert [(trial.run, trial.value, trial.params) for trial in sweep.trials()] == [
        ("abc-r1", 1e-3, {"lr": 1e-3, "mode": "head"}),
        ("abc-r2", 1e-2, {"optim.lr": 1e-2, "strategy.name": "partial", "unfreeze_from": "layer3"}),
    ]


def test_without_more_points_the_sweep_waits(client) -> None:
    made = client({"lr": 1e-3})
    status, _ = run(adopted("abc"), lambda settings: 0.5)
    assert status == ("waiting", "W&B has no more runs; 1 run done") and made.places[0] == ("abc", None, None)


def test_failures_are_recorded_and_other_errors_reach_the_agent(client) -> None:
    made = client({"lr": 1e-3}, {"lr": 1e-4}, {"lr": 5.0, "epochss": 2}, {"lr": 1e-2})

    def objective(settings: dict[str, Any]) -> float:
        if settings["optim.lr"] == 1e-3:
            raise InatFtError("the loss is nan")
        if settings["optim.lr"] == 1e-4:
            raise KeyError("lost")
        return 0.5

    _, lines = run(sweep := adopted(), objective, 4)
    assert lines[:2] == ["run r1 failed: the loss is nan", "run r2 failed: KeyError: 'lost'"]
    assert "unknown key 'epochss'" in lines[2] and lines[3] == "run r4: val_accuracy 0.5000"
    assert made.exits == [(1, 1), (3, 1)] and [type(error) for error in made.raised] == [KeyError]
    assert [trial.state for trial in sweep.trials()] == ["failed", "failed", "failed", "complete"]


def test_ten_failures_in_a_row_end_the_sweep(client) -> None:
    made = client(*({"lr": 1e-3} for _ in range(12)))

    def objective(settings: dict[str, Any]) -> float:
        raise InatFtError("the loss is nan")

    status, _ = run(adopted(), objective)
    assert status == ("failed", "10 failures in a row, the last one: the loss is nan") and len(made.points) == 2


def test_a_run_that_is_stopped_from_the_page_leaves_no_crash_report(client) -> None:
    client({"lr": 1e-3})
    report = Path("crash.txt")
    report.write_text("Traceback")

    def objective(settings: dict[str, Any]) -> float:
        error = Exception()
        error.crash_file = report
        raise error

    _, lines = run(sweep := adopted(), objective, 1)
    assert lines == ["run r1 was stopped from W&B's page"] and not report.exists()
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [("failed", "stopped from W&B's page")]


def test_a_stopped_sweep_assigns_nothing(client) -> None:
    made = client({"lr": 1e-3})
    sweep = adopted()
    sweep.stop()
    status, _ = run(sweep, lambda settings: 0.5)
    assert status == ("stopped", "it was stopped; resume it: " + sweep.next_command("run")) and not made.places


@pytest.mark.parametrize("error", [Client.Error("sweep is gone"), InatFtError("W&B does not answer")])
def test_a_lost_server_is_reported_with_what_is_complete(client, monkeypatch, error: Exception) -> None:
    client({"lr": 1e-3}, {"lr": 1e-2})

    def lost() -> None:
        raise error

    sweep = adopted()
    monkeypatch.setattr(sweep_backend, "_require_online", lambda: None)
    monkeypatch.setattr(sweep_backend, "require_server", lost)
    with pytest.raises(InatFtError, match=f"assigns no more runs of me/birds/abc: {error}") as caught:
        run(sweep, lambda settings: 0.5)
    assert "1 run complete in sweeps/abc/runs" in caught.value.hint and "wandb sync" in caught.value.hint
    assert [trial.state for trial in sweep.trials()] == ["complete"]


def test_creating_returns_the_address_or_says_why_not(client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = client()
    asked = []
    made.sweep = lambda spec, entity, project: asked.append((spec["method"], entity, project)) or "abc"
    assert Wandb().create(parse_spec(SPEC), "birds", None) == "abc"
    monkeypatch.setenv("WANDB_ENTITY", "me")
    monkeypatch.setenv("WANDB_PROJECT", "birds")
    assert Wandb().create(parse_spec(SPEC), "birds", "me") == "me/birds/abc"
    assert asked == [("random", None, "birds"), ("random", "me", "birds")]

    def refuse(spec: object, entity: str | None, project: str | None) -> str:
        raise Client.Error("no such project")

    made.sweep = refuse
    with pytest.raises(InatFtError, match="W&B refuses the sweep: no such project"):
        Wandb().create(parse_spec(SPEC), "birds", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UsageError, match="WANDB_MODE=offline: W&B sweeps need a server"):
        Wandb().create(parse_spec(SPEC), "birds", None)
