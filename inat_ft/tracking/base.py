"""The contract of a tracker."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from inat_ft.config import RunConfig, Section
from inat_ft.records import Epoch, RunRecord


class Tracker(Section):
    """Logs a training to an experiment tracker. The fields are its options; a string below a field is its help.

    Registered under the entry-point group `inat_ft.trackers`; the options are set as `track.NAME.OPTION`. The methods are
    called in the order below, in one process only. Keep what you need between calls in private attributes, such as
    `_run: Any = PrivateAttr(None)`. An exception in `check` stops the command. An exception in another method becomes one
    warning; the training continues, and only `finish` is called again.
    """

    def check(self) -> None:
        """Check that the tracker can be used. Called before the run directory is made. Default: do nothing."""

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start to log a run. Default: do nothing.

        directory: the run's, to keep an identifier in that a resumed training needs. history: the epochs that were
        finished before; it is empty unless a training is resumed.
        """

    @abstractmethod
    def log(self, epoch: Epoch) -> None:
        """Log an epoch: its number, counted from 1, its losses and its accuracies. A loss that is not finite is None."""

    def finish(self, record: RunRecord | None) -> str:
        """Finish the run and return a line to show to the user, or an empty string.

        record: the result; None when the training failed or was interrupted.
        """
        return ""
