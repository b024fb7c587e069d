"""Logging of a run to experiment trackers: the base class of a tracker plugin, and the trackers of a run."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inat_ft.config import RunConfig, Section, TrackConfig, build_tracker
from inat_ft.errors import InatFtError
from inat_ft.records import Epoch, RunRecord
from inat_ft.registry import call_plugin


class Tracker(Section):
    """Logs a run to an experiment tracker. The fields are its options; a string below a field is its help.

    Registered under the entry-point group `inat_ft.trackers`; the options are set as `track.NAME.OPTION`. The methods are
    called in the order below, in one process only. Keep what you need between calls in private attributes, such as
    `_run: Any = PrivateAttr(None)`. An exception in `check` stops the command. An exception in another method becomes one
    warning; the training continues, and only `finish` is called again.
    """

    def check(self) -> None:
        """Check that the tracker can be used. Called before the run folder is created. Default: do nothing."""

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start to log a run. Default: do nothing.

        directory: the run folder, where you can keep an identifier for a resumed run. history: the epochs that were finished
        before; it is empty unless a run is resumed.
        """

    @abstractmethod
    def log(self, epoch: Epoch) -> None:
        """Log an epoch: its number, counted from 1, its losses and its accuracies. A loss that is not finite is None."""

    def finish(self, record: RunRecord | None) -> str:
        """Finish the run and return a line to show to the user, or an empty string.

        record: the result; None when the training failed or was interrupted.
        """
        return ""

    def evaluated(self, record: RunRecord, directory: Path, subset: str) -> None:
        """Log the results of `inat-ft eval` on a subset, `record.test` or `record.val`. Default: do nothing.

        Called after `check` for each tracker of the run's configuration, without `start`. An exception becomes a warning.
        """

    def complete(self, record: RunRecord, directory: Path) -> None:
        """Write what is missing of a finished run, because its process was killed after `record.json`. Default: do nothing.

        Called when the run is resumed, as `evaluated` is.
        """


class Trackers:
    """The trackers of one run. One that fails is reported in one warning and gets no more epochs."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)
        self._started: list[Tracker] = []
        self._failed: set[int] = set()
        self._work = "training"

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start each tracker; history: the epochs that were finished before, if a run is resumed."""
        for tracker in self._trackers:
            self._call(tracker, tracker.start, config, name, directory, history)
        self._started = [tracker for tracker in self._trackers if id(tracker) not in self._failed]

    def log(self, epoch: Epoch) -> None:
        for tracker in self._started:
            if id(tracker) not in self._failed:
                self._call(tracker, tracker.log, epoch)

    def finish(self, record: RunRecord | None) -> list[str]:
        return [line for tracker in self._started if (line := self._call(tracker, tracker.finish, record))]

    def call_each(self, method: str, *args: Any) -> None:
        """Call `evaluated` or `complete` of each tracker that can be used."""
        self._work = "evaluation" if method == "evaluated" else "command"
        for tracker in self._trackers:
            self._call(tracker, tracker.check)
            if id(tracker) not in self._failed:
                self._call(tracker, getattr(tracker, method), *args)

    def _call(self, tracker: Tracker, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return call_plugin(method, *args)
        except (InatFtError, MemoryError) as error:
            if type(error.__cause__) is Exception and not error.__cause__.args:
                raise error.__cause__ from None  # W&B's agent raises it in this thread to stop a trial
            if id(tracker) not in self._failed:
                self._failed.add(id(tracker))
                lines = [str(error) or "out of memory", *getattr(error, "hint", "").splitlines()]
                print(f"warning: {lines[0]}; the {self._work} continues: {'; '.join(lines[1:])}", file=sys.stderr)
        return None


def make_trackers(config: TrackConfig) -> Trackers:
    """Return the trackers in use. Raises InatFtError when one of them cannot be used, as when its server is unreachable."""
    trackers: list[Tracker] = [build_tracker(name, options) for name, options in config.trackers.items()]
    for tracker in trackers:
        call_plugin(tracker.check)
    return Trackers(trackers)


def log_evaluation(record: RunRecord, directory: Path, subset: str) -> None:
    """Log an evaluation to the trackers of the run. What fails is reported in a warning."""
    _call_each("the evaluation is not logged", record, "evaluated", record, directory, subset)


def complete_run(record: RunRecord, directory: Path) -> None:
    """Let the trackers of a finished run write what is missing. What fails is reported in a warning."""
    _call_each("the files of the run are not completed", record, "complete", record, directory)


def _call_each(otherwise: str, record: RunRecord, method: str, *args: Any) -> None:
    try:
        options = TrackConfig.model_validate(record.config.get("track", {})).trackers
        trackers = [build_tracker(name, own) for name, own in options.items()]
    except (InatFtError, ValidationError) as error:  # as when the run was trained elsewhere, with another plugin
        print(f"warning: {otherwise}: {str(error).splitlines()[0]}", file=sys.stderr)
    else:
        Trackers(trackers).call_each(method, *args)
