"""Logging of a training to experiment trackers."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inat_ft.config import RunConfig, TrackConfig, build_tracker
from inat_ft.errors import InatFtError
from inat_ft.records import Epoch, RunRecord
from inat_ft.registry import call_plugin
from inat_ft.tracking.base import Tracker

__all__ = ["Tracker", "Trackers", "make_trackers"]


class Trackers:
    """The trackers of one run. One that fails is reported in one warning and gets no more epochs."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)
        self._started: list[Tracker] = []
        self._failed: set[int] = set()

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start each tracker; history: the epochs that were finished before, if a training is resumed."""
        for tracker in self._trackers:
            self._call(tracker, tracker.start, config, name, directory, history)
        self._started = [tracker for tracker in self._trackers if id(tracker) not in self._failed]

    def log(self, epoch: Epoch) -> None:
        """Log an epoch to each tracker that has not failed."""
        for tracker in self._started:
            if id(tracker) not in self._failed:
                self._call(tracker, tracker.log, epoch)

    def finish(self, record: RunRecord | None) -> list[str]:
        """Finish the run in each tracker that was started; return what the user should know."""
        return [line for tracker in self._started if (line := self._call(tracker, tracker.finish, record))]

    def _call(self, tracker: Tracker, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return call_plugin(method, *args)
        except (InatFtError, MemoryError) as error:
            if type(error.__cause__) is Exception and not error.__cause__.args:
                raise error.__cause__ from None  # W&B's agent raises it in this thread to stop a trial
            if id(tracker) not in self._failed:
                self._failed.add(id(tracker))
                lines = [str(error) or "out of memory", *getattr(error, "hint", "").splitlines()]
                print(f"warning: {lines[0]}; the training continues: {'; '.join(lines[1:])}", file=sys.stderr)
        return None


def make_trackers(config: TrackConfig) -> Trackers:
    """Return the trackers in use. Raises InatFtError when one of them cannot be used, as when its server is unreachable."""
    trackers: list[Tracker] = [build_tracker(name, options) for name, options in config.trackers.items()]
    for tracker in trackers:
        call_plugin(tracker.check)
    return Trackers(trackers)
