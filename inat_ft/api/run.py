"""A trained classifier on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_ft.records import Epoch, RunRecord, read_record
from inat_ft.tables import Column, Table

RunLike = str | os.PathLike[str]
"""A Run, a run directory, or the path of its record.json."""


@dataclass(frozen=True)
class Run:
    """A trained classifier: its record and its directory.

        run = inat_ft.Run.open("runs/resnet50-head-1")
        run.val_accuracy

    Functions that take the path of a run also take a Run.
    """

    record: RunRecord
    directory: Path

    @classmethod
    def open(cls, path: RunLike) -> Run:
        """Open a run directory or its record.json. Raises UsageError if it is missing, RecordError if it is damaged."""
        record, file = read_record(Path(path))
        return cls(record, file.parent)

    def __fspath__(self) -> str:
        return os.fspath(self.directory)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.record.name

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on the validation images in the best epoch, 0 to 1."""
        return self.record.val_accuracy

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test images, 0 to 1; None if the run has not been evaluated."""
        return self.record.test_accuracy

    @property
    def history(self) -> Sequence[Epoch]:
        """Losses, accuracies, learning rate and seconds of each epoch."""
        return self.record.history

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the logits."""
        return self.record.classes

    @property
    def table(self) -> Table:
        """The history as a table, one row per epoch."""
        columns = [Column("epoch", right=True)]
        columns += [Column(name, ".4f", True) for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")]
        columns += [Column("lr", ".3g", True), Column("seconds", ".1f", True)]
        rows = [[getattr(epoch, column.name) for column in columns] for epoch in self.history]
        return Table(columns, rows, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the record and the directory as `inat-ft train --json` prints them."""
        return {**self.record.model_dump(mode="json"), "directory": self.directory.as_posix()}

    def __str__(self) -> str:
        value = "unknown" if self.val_accuracy is None else f"{self.val_accuracy:.4f}"
        return f"{self.name}: validation accuracy {value}, {self.directory}"

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
