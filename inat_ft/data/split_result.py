"""The result of a split: the manifest and what was found, as a table or a dictionary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from inat_ft.data.leakage import Findings
from inat_ft.data.manifest import SUBSETS, Manifest
from inat_ft.tables import Column, Table


class Imbalance(NamedTuple):
    """The classes with the most and the fewest training images."""

    most: str
    fewest: str
    ratio: float
    """Training images of `most` divided by those of `fewest`, 1 or more."""


@dataclass(frozen=True)
class SplitResult:
    """A split: its manifest, and the duplicates and label conflicts that were found.

    `train(split=result)` trains on it.
    """

    manifest: Manifest
    findings: Findings
    is_new: bool
    """False if the same manifest existed."""
    warnings: Sequence[str] = ()
    """Messages about classes that are probably not as intended."""
    default_test_set: bool = False
    """Whether a test set was reserved because the data has none and no fraction was given."""

    def __fspath__(self) -> str:
        return os.fspath(self.manifest.path)

    @property
    def path(self) -> Path:
        """Path of the manifest."""
        return self.manifest.path

    @property
    def imbalance(self) -> Imbalance:
        """The class imbalance of the training images."""
        train = {name: row["train"] for name, row in self.manifest.counts().items()}
        most, fewest = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
        return Imbalance(most, fewest, train[most] / train[fewest])

    @property
    def table(self) -> Table:
        """Images by class (one row each, then the total) and subset."""
        rows = [(name, *row.values(), sum(row.values())) for name, row in self.manifest.counts().items()]
        totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
        columns = [Column("class"), *(Column(name, ",", right=True) for name in (*SUBSETS, "all"))]
        return Table(columns, [*rows, ("total", *totals)])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft split --json` prints it."""
        manifest, findings = self.manifest, self.findings
        return {
            "manifest": manifest.path.as_posix(),
            "fingerprint": manifest.fingerprint,
            "seed": manifest.seed,
            "layout": manifest.made["layout"],
            "test_fraction": manifest.made["test_fraction"],
            "classes": list(manifest.classes),
            "counts": manifest.counts(),
            "imbalance": self.imbalance.ratio,
            "left_out": [{"path": left.path, "reason": left.text} for left in manifest.left_out],
            "exact_copies": findings.exact_groups,
            "near_copies": findings.near_groups,
            "leaked": [{"train": train, "test": test} for train, test in findings.leaked],
            "leaked_to_val": [{"train": train, "val": val} for train, val in findings.leaked_val],
            "label_conflicts": findings.conflicts,
            "near_label_conflicts": findings.near_conflicts,
            "classes_without_test": findings.classes_without_test,
        }

    def __str__(self) -> str:
        return f"{self.table}\nmanifest: {self.path}"

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
