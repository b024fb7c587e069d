"""Predictions."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inat_ft.records import replacing


@dataclass(frozen=True)
class Predictions:
    classes: tuple[str, ...]
    paths: Sequence[str]
    hashes: Sequence[str]
    true: np.ndarray
    probabilities: np.ndarray | None
    predicted: np.ndarray = field(default=None)

    def __post_init__(self):
        if self.predicted is None:
            object.__setattr__(self, "predicted", self.probabilities.argmax(1))


def write_predictions(file: Path, p: Predictions) -> None:
    with replacing(file) as temporary, temporary.open("w", newline="") as out:
        w = csv.writer(out)
        w.writerow(["path", "true", "predicted", "sha256", *(f"p_{c}" for c in p.classes)])
        for i, path in enumerate(p.paths):
            w.writerow([path, p.classes[p.true[i]], p.classes[p.predicted[i]], p.hashes[i], *(f"{x:.6g}" for x in p.probabilities[i])])
