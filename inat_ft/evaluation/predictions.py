"""Predictions image by image, and the CSV that holds them: `path,true,predicted[,sha256][,p_<class>...]`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import RecordError
from inat_ft.records import replacing

_PREFIX = "p_"


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of each image.

    hashes: SHA-256 of each file in hex, "" where unknown; true, predicted: int64 `[N]`, into classes; probabilities:
    float64 `[N, C]`, each row summing to 1, or None when only the predicted class is known.
    """

    classes: tuple[str, ...]
    paths: Sequence[str]
    hashes: Sequence[str]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.true)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which images were right, `[N]`."""
        right: NDArray[np.bool_] = self.true == self.predicted
        return right


def from_probabilities(
    classes: Sequence[str], paths: Sequence[str], hashes: Sequence[str], true: NDArray[np.int64], p: NDArray[np.float64]
) -> Predictions:
    """Predictions of the class with the highest probability; p: float64 `[N, C]`."""
    return Predictions(tuple(classes), paths, hashes, true, p.argmax(1).astype(np.int64), p)


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Write the CSV atomically; probabilities with nine significant digits."""
    classes, p = predictions.classes, predictions.probabilities
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        columns = [f"{_PREFIX}{name}" for name in classes] if p is not None else []
        writer.writerow(["path", "true", "predicted", "sha256", *columns])
        for row, path in enumerate(predictions.paths):
            shares = [f"{share:.9g}" for share in p[row]] if p is not None else []
            true, predicted = classes[predictions.true[row]], classes[predictions.predicted[row]]
            writer.writerow([path, true, predicted, predictions.hashes[row], *shares])


def read_predictions(file: Path) -> Predictions:
    """Read the CSV, ours or another program's. Raises RecordError naming file, line and value."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = next(reader, [])
            rows = [row for row in reader if row]
    except FileNotFoundError:
        raise RecordError(f"no such predictions file: {file}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"cannot read {file} as CSV: {error}") from None
    missing = {"path", "true", "predicted"} - set(header)
    if missing:
        raise RecordError(f"{file} lacks the columns {', '.join(sorted(missing))}; it has: {', '.join(header)}")
    if not rows:
        raise RecordError(f"{file} holds no predictions")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise RecordError(f"{file}, line {number}: {len(row)} values for {len(header)} columns")
    return _parse(file, header, rows)


def _parse(file: Path, header: list[str], rows: list[list[str]]) -> Predictions:
    place = {name: number for number, name in enumerate(header)}
    true, predicted = ([row[place[key]] for row in rows] for key in ("true", "predicted"))
    columns = [name for name in header if name.startswith(_PREFIX)]
    named = tuple(name.removeprefix(_PREFIX) for name in columns)
    classes = named or tuple(sorted({*true, *predicted}))
    index = {name: number for number, name in enumerate(classes)}
    for number, name in enumerate((*true, *predicted)):
        if name not in index:
            raise RecordError(f"{file}, line {number % len(rows) + 2}: class {name!r} has no column {_PREFIX}{name}")
    probabilities = _probabilities(file, rows, [place[name] for name in columns]) if columns else None
    return Predictions(
        classes,
        [row[place["path"]] for row in rows],
        [row[place["sha256"]] if "sha256" in place else "" for row in rows],
        np.array([index[name] for name in true], np.int64),
        np.array([index[name] for name in predicted], np.int64),
        probabilities,
    )


def _probabilities(file: Path, rows: list[list[str]], places: list[int]) -> NDArray[np.float64]:
    try:
        p = np.array([[float(row[place]) for place in places] for row in rows])
    except ValueError as error:
        raise RecordError(f"{file}: a probability is no number: {error}") from None
    bad = np.flatnonzero(~np.isfinite(p).all(1) | (p < 0).any(1) | (np.abs(p.sum(1) - 1) > 0.01))
    if len(bad):
        raise RecordError(f"{file}, line {bad[0] + 2}: the probabilities sum to {p[bad[0]].sum():.4g}, not to 1")
    scaled: NDArray[np.float64] = p / p.sum(1, keepdims=True)
    return scaled
