"""The tracker `files`, which writes into the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import PrivateAttr

from inat_ft.config import RunConfig
from inat_ft.records import Epoch, RunRecord
from inat_ft.tracking import Tracker


class RunFiles(Tracker):
    """Write curves, the confusion matrix of the validation images, and a model card into the run's folder."""

    _directory: Path = PrivateAttr(Path())

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        self._directory = directory

    def log(self, epoch: Epoch) -> None:
        pass

    def finish(self, record: RunRecord | None) -> str:
        if record is not None:
            _write(record, self._directory, None)
        return ""

    def evaluated(self, record: RunRecord, directory: Path, subset: str) -> None:
        """Write the card again, with the results of the evaluation, and its confusion matrix."""
        _write(record, directory, subset)

    def complete(self, record: RunRecord, directory: Path) -> None:
        if not (directory / "README.md").exists():  # it is written last
            _write(record, directory, None)


def _write(record: RunRecord, directory: Path, subset: str | None) -> None:
    from inat_ft_run_files.card import write_card
    from inat_ft_run_files.figures import write_confusion, write_curves
    from inat_ft_run_files.results import evaluated, validation

    trained = evaluated(record, "val") or validation(record, directory)
    tested = evaluated(record, "test")
    if subset is None and record.history:
        write_curves(record.history, directory / "curves.png")
    for each in (trained, tested):
        if each is not None and (each.subset == subset or (subset is None and each.subset == "val")):
            write_confusion(each, directory / f"confusion-{each.subset}.png")
    write_card(record, [each for each in (trained, tested) if each is not None], directory / "README.md")
