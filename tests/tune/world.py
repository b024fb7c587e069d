"""Searches without training: each epoch takes the seconds and has the accuracy that a test names, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from inat_ft_tune.candidates import common_settings
from inat_ft_tune.session import Session
from inat_ft_tune.state import State

from inat_ft.config import RunConfig
from inat_ft.evaluation.predictions import write_predictions
from inat_ft.metrics import Predictions
from inat_ft.progress import no_progress
from inat_ft.records import Epoch, RunRecord, write_record
from inat_ft.settings import load_config
from inat_ft.setup import Directories, SharedSetup, TrainCallbacks
from inat_ft.training import Outcome, TrainJob

_STEPS, _IMAGES = 10, 100


class World:
    """A clock, and runs whose results are known.

    seconds, accuracy: of an epoch. errors: what a strategy raises. interrupt_after: number of epochs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.seconds: Callable[[RunConfig], float] = lambda config: 0.1 if config.strategy.name == "head" else 1.0
        self.accuracy: Callable[[RunConfig, int], float] = lambda config, epoch: 0.5
        self.errors: Mapping[str, BaseException] = {}
        self.interrupt_after: int | None = None
        self.epochs: list[tuple[str, int]] = []
        """Each trained epoch: the name of the run and the number of the epoch."""
        self.lines: list[str] = []
        self._saved: dict[str, list[Epoch]] = {}
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in ("stages", "session", "trainer", "tune", "command"):
            monkeypatch.setattr(f"inat_ft_tune.{module}.time", clock)
        monkeypatch.setattr("inat_ft_tune.trainer.train", self.train)
        monkeypatch.setattr("inat_ft.training.train_together", self.train_together)
        for module in ("inat_ft_tune.trainer", "inat_ft.engine.device"):
            monkeypatch.setattr(f"{module}.release_memory", lambda: None)  # there is no memory to release

    def train(
        self, config: RunConfig, directories: Directories, callbacks: TrainCallbacks, resume: Path | None
    ) -> tuple[RunRecord, Path]:
        """Take the place of `inat_ft.training.train`."""
        if error := self.errors.get(config.strategy.name):
            raise error
        assert config.name is not None
        directory = directories.runs / config.name
        directory.mkdir(parents=True, exist_ok=True)
        if resume is None:
            self._saved[config.name] = []
        history = self._saved[config.name]
        while len(history) < config.optim.epochs:
            seconds, number = self.seconds(config), len(history) + 1
            for step in range(_STEPS):
                self.now += seconds / _STEPS
                callbacks.on_step(step + 1, _STEPS, None, None)
            value = self.accuracy(config, number)
            history.append(Epoch(epoch=number, train_loss=1.0, val_accuracy=value, seconds=seconds))
            self.epochs.append((config.name, number))
            if callbacks.on_epoch(history[-1]):
                break
            if len(self.epochs) == self.interrupt_after:
                raise KeyboardInterrupt
        best = max(history, key=lambda epoch: epoch.val_accuracy or 0.0)
        record = RunRecord(name=config.name, history=history, best_epoch=best.epoch, val_accuracy=best.val_accuracy)
        write_record(record, directory / "record.json")
        write_correct(directory, round(_IMAGES * (best.val_accuracy or 0.0)))
        return record, directory

    def train_together(self, jobs: Sequence[TrainJob], shared: SharedSetup) -> list[Outcome]:
        """Take the place of `inat_ft.training.train_together`."""
        return [self._outcome(job) for job in jobs]

    def _outcome(self, job: TrainJob) -> Outcome:
        try:
            return self.train(job.config, job.directories, job.callbacks, job.resume)
        except Exception as error:
            return error

    def search(
        self,
        budget: float = 1000.0,
        head: tuple[float, float, float] = (1.0, 0.1, 0.1),
        costs: Mapping[str, float] | None = None,
        **fixed: object,
    ) -> Session:
        """Return a search whose costs are measured. costs: estimated seconds of an epoch, by strategy. fixed: settings."""
        given = [("model.backbone", "cnn"), *((key.replace("__", "."), value) for key, value in fixed.items())]
        base, costs = load_config(None, given), {"full": 1.0} if costs is None else costs
        state = State(
            data="photos",
            given=given,
            settings=common_settings(base, "photos.csv", _IMAGES),
            strategies=list(costs),
            seed=0,
            budget_s=budget,
            split="photos.csv",
            images={"train": _IMAGES, "val": _IMAGES, "test": _IMAGES},
            head_cost=head,
            costs={name: (0.0, 0.1, cost) for name, cost in costs.items()},
        )
        return self.session(state)

    def session(self, state: State) -> Session:
        """Return a session that starts now."""
        base = load_config(None, list(state.given))
        return Session(Path("t"), state, base, Path("cache"), Path("runs"), self.now, self.lines.append, no_progress)


def write_correct(directory: Path, correct: int, number: int = _IMAGES) -> None:
    """Write validation predictions of which the first ones are correct."""
    true, wrong = np.zeros(number, np.int64), np.arange(number) >= correct
    names = [str(place) for place in range(number)]
    probabilities = np.stack([1 - wrong * 0.8 - 0.1, wrong * 0.8 + 0.1], 1)
    directory.mkdir(parents=True, exist_ok=True)
    found = Predictions(("a", "b"), names, names, true, wrong.astype(np.int64), probabilities)
    write_predictions(directory / "predictions-val.csv", found)
