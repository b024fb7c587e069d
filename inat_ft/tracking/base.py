"""What a tracker is: it hears of a run's start, of each epoch, and of the end. It never ends a training."""

from pathlib import Path
from typing import Protocol

from inat_ft.config import RunConfig
from inat_ft.records import Epoch, RunRecord


class Tracker(Protocol):
    """Told of one run, in this order. Only `start` may raise."""

    def start(self, config: RunConfig, name: str, directory: Path) -> None:
        """A run begins, or goes on. Raises InatFtError when nobody listens there."""

    def log(self, epoch: Epoch) -> None:
        """An epoch is over."""

    def finish(self, record: RunRecord | None) -> str:
        """The run is over, its directory complete; None: it has failed. Returns what is to be said of it, or nothing."""


class NullTracker:
    """Nobody listens."""

    def start(self, config: RunConfig, name: str, directory: Path) -> None:
        """Nothing."""

    def log(self, epoch: Epoch) -> None:
        """Nothing."""

    def finish(self, record: RunRecord | None) -> str:
        """Nothing."""
        return ""
