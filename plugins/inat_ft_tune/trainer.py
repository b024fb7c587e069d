"""Train one run until it has enough epochs or the time is up; it can be continued later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from inat_ft.config import RunConfig
from inat_ft.engine.device import release_memory
from inat_ft.errors import DataError, InatFtError, StorageError
from inat_ft.progress import ProgressBar, ProgressFn
from inat_ft.records import Epoch, RunRecord
from inat_ft.setup import Directories, TrainCallbacks
from inat_ft.training import train
from inat_ft_tune.state import Trial

_PROBE_S, _CERTAIN = 3.0, 1.5


class Paused(BaseException):
    """A run stops after a saved epoch. It is no Exception: the run has not failed."""


@dataclass
class Gate:
    """Decides after each epoch whether a run goes on.

    epochs: number of epochs at which it stops. deadline: no epoch starts that would end later. end: no step starts later;
    both as `time.monotonic`. finish: complete the run when it stops, rather than pause it.
    """

    epochs: int
    deadline: float
    end: float
    finish: bool = False
    is_probe: bool = False
    """Whether the run stops in its first epoch as soon as it is clear that it would end after `end`, and is completed, not
    paused, if there is no time for another epoch."""
    history: list[Epoch] = field(default_factory=list)
    is_late: bool = False
    """Whether the time was up before the run had all epochs."""
    _pause: bool = False
    _first: tuple[float, int] | None = None

    def on_step(self, done: int, total: int, loss: float | None, accuracy: float | None) -> None:
        """Pause the run: the last epoch is saved by now."""
        now = time.monotonic()
        if self._pause or now > self.end:
            raise Paused
        if self.is_probe and not self.history:
            since, first = self._first = self._first or (now, done)
            if now - since > _PROBE_S and now + (now - since) * (total - done) / max(1, done - first) > self.end:
                raise Paused

    def on_epoch(self, epoch: Epoch) -> bool:
        """Return whether the run ends."""
        self.history.append(epoch)
        is_complete = epoch.epoch >= self.epochs
        self.is_late = not is_complete and time.monotonic() + (epoch.seconds or 0.0) > self.deadline
        is_over = is_complete or self.is_late
        is_finished = is_over and (self.finish or (self.is_probe and self.is_late))
        self._pause = is_over and not is_finished
        return is_finished


def limited(progress: ProgressBar, end: float, error: Callable[[float], BaseException]) -> ProgressBar:
    """Return a progress bar that raises an error when the work would end after `end` even at 1.5 times its rate so far.

    error: called with the expected seconds of all of the work.
    """

    @contextmanager
    def start(what: str, unit: str = "images", /) -> Iterator[ProgressFn]:
        began = time.monotonic()
        with progress(what, unit) as update:

            def check(done: int, total: int) -> None:
                update(done, total)
                now = time.monotonic()
                seconds = (now - began) * total / max(1, done)
                left = seconds - (now - began) if now - began > _PROBE_S else 0.0
                if now + left / _CERTAIN > end:
                    raise error(seconds)

            yield check

    return start


def train_trial(trial: Trial, config: RunConfig, cache: Path, gate: Gate, progress: ProgressBar) -> None:
    """Train or continue a trial, and record in it what came out. Raises errors that would concern every trial."""
    started, directory = time.monotonic(), Path(trial.directory)
    callbacks = TrainCallbacks(
        progress=limited(progress, gate.end, lambda seconds: Paused()), on_step=gate.on_step, on_epoch=gate.on_epoch
    )
    release_memory()
    try:
        resume = directory if directory.is_dir() else None
        record, _ = train(config, Directories(directory.parent, cache), callbacks, resume)
        note(trial, record)
    except Paused:
        trial.status = "paused"
    except (DataError, StorageError):
        raise
    except InatFtError as error:
        trial.status, trial.reason = "failed", error.message
    finally:
        trial.seconds += time.monotonic() - started
        if trial.status != "done":
            _add(trial, gate.history)


def note(trial: Trial, record: RunRecord) -> None:
    """Record a complete run."""
    trial.status, trial.value, trial.epochs = "done", record.val_accuracy, len(record.history)
    trial.epoch_s = [epoch.seconds or 0.0 for epoch in record.history]


def _add(trial: Trial, history: list[Epoch]) -> None:
    """Record the epochs of a run that is not complete."""
    for epoch in history:
        if epoch.epoch > trial.epochs:
            trial.epochs = epoch.epoch
            trial.epoch_s.append(epoch.seconds or 0.0)
            trial.value = max(trial.value or 0.0, epoch.val_accuracy or 0.0)
