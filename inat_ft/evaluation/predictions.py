"""Predictions image by image, and the CSV that holds them: `path,true,predicted[,sha256][,p_<class>...]`."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import RecordError, UsageError
from inat_ft.records import atomic_write

_PREFIX = "p_"
_NEEDED = ("path", "true", "predicted")


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
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        columns = [f"{_PREFIX}{name}" for name in classes] if p is not None else []
        writer.writerow(["path", "true", "predicted", "sha256", *columns])
        for row, path in enumerate(predictions.paths):
            shares = [f"{share:.9g}" for share in p[row]] if p is not None else []
            true, predicted = classes[predictions.true[row]], classes[predictions.predicted[row]]
            writer.writerow([path, true, predicted, predictions.hashes[row], *shares])


def read_predictions(file: Path) -> Predictions:
    """Read the CSV, ours or another program's. Raises RecordError naming file, line and value."""
    if file.exists() and not file.is_file():
        raise RecordError(f"{file} is no regular file")
    try:
        text = _text(file)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise UsageError(f"no such predictions file: {file}") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"cannot read {file} as CSV: it is not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise RecordError(f"cannot read {file} as CSV: {error}") from None
    missing = sorted(set(_NEEDED) - set(header))
    if missing:
        # What the file holds is shown only when it looks like predictions: a record may name any file.
        shown = f"; it has: {', '.join(header)}" if len(missing) < len(_NEEDED) else ""
        raise RecordError(
            f"{file} lacks the columns {', '.join(missing)}{shown}",
            "the first line must be path,true,predicted[,sha256][,p_<class>...]",
        )
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise RecordError(f"{file} has the column {twice[0]!r} twice")
    if not rows:
        raise RecordError(f"{file} holds no predictions")
    _check_rows(file, header, rows)
    return _parse(file, header, rows)


def _text(file: Path) -> str:
    """Read a text file as UTF-8, or as UTF-16 where its first bytes say so."""
    data = file.read_bytes()
    return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def _delimiter(text: str) -> str:
    """Return the character that separates the needed columns in the header: a comma, semicolon or tab."""
    header = text.partition("\n")[0]
    names = {mark: set(next(csv.reader([header.rstrip("\r")], delimiter=mark), [])) for mark in ",;\t"}
    return next((mark for mark, found in names.items() if set(_NEEDED) <= found), ",")


def _check_rows(file: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> None:
    place = {name: number for number, name in enumerate(header)}
    seen: dict[str, int] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise RecordError(f"{file}, line {line}: {len(row)} values for {len(header)} columns")
        for name in ("path", "true", "predicted"):
            if not row[place[name]].strip():
                raise RecordError(f"{file}, line {line}: no value for {name}")
        path = row[place["path"]]
        if path in seen:
            raise RecordError(f"{file}, line {line}: {path!r} stands in line {seen[path]} already; one row an image")
        seen[path] = line


def _parse(file: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> Predictions:
    place = {name: number for number, name in enumerate(header)}
    true, predicted = ([row[place[key]] for _, row in rows] for key in ("true", "predicted"))
    columns = [name for name in header if name.startswith(_PREFIX)]
    named = tuple(name.removeprefix(_PREFIX) for name in columns)
    classes = named or tuple(sorted({*true, *predicted}))
    index = {name: number for number, name in enumerate(classes)}
    for number, name in enumerate((*true, *predicted)):
        if name not in index:
            raise RecordError(
                f"{file}, line {rows[number % len(rows)][0]}: class {name!r} has no column {_PREFIX}{name}"
            )
    probabilities = _probabilities(file, rows, [place[name] for name in columns]) if columns else None
    return Predictions(
        classes,
        [row[place["path"]] for _, row in rows],
        [row[place["sha256"]].lower() if "sha256" in place else "" for _, row in rows],
        np.array([index[name] for name in true], np.int64),
        np.array([index[name] for name in predicted], np.int64),
        probabilities,
    )


def _probabilities(file: Path, rows: list[tuple[int, list[str]]], places: list[int]) -> NDArray[np.float64]:
    try:
        p = np.array([[float(row[place]) for place in places] for _, row in rows])
    except ValueError as error:
        raise RecordError(f"{file}: a probability is no number: {error}") from None
    outside = ~(np.isfinite(p) & (p >= 0) & (p <= 1.01)).all(1)
    bad = np.flatnonzero(outside | (np.abs(p.sum(1) - 1) > 0.01))
    if len(bad):
        line, shares = rows[bad[0]][0], p[bad[0]]
        what = (
            "a probability lies outside 0 to 1"
            if outside[bad[0]]
            else f"the probabilities sum to {shares.sum():.4g}, not to 1"
        )
        got = ", ".join(f"{share:.4g}" for share in shares[:4]) + (", ..." if len(shares) > 4 else "")
        raise RecordError(f"{file}, line {line}: {what} ({got})")
    scaled: NDArray[np.float64] = p / p.sum(1, keepdims=True)
    return scaled


def align(a: Predictions, b: Predictions) -> Predictions | str:
    """`b` in the order of the images of `a`, matched by content, else by path; or why that cannot be."""
    if set(a.classes) != set(b.classes):
        unlike = sorted(set(a.classes) ^ set(b.classes))
        return f"they have different classes ({', '.join(unlike[:3])})"
    by_content = all(a.hashes) and all(b.hashes)
    keys_a, keys_b = (a.hashes, b.hashes) if by_content else (_below(a.paths), _below(b.paths))
    if sorted(keys_a) != sorted(keys_b):
        shared = len(set(keys_a) & set(keys_b))
        return f"they were tested on different images ({shared:,} in common)"
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys_b):
        places.setdefault(key, []).append(place)
    order = np.array([places[key].pop(0) for key in keys_a])
    recode = np.array([a.classes.index(name) for name in b.classes])
    true, predicted = recode[b.true][order], recode[b.predicted][order]
    if (true != a.true).any():
        return f"they give {int((true != a.true).sum()):,} test images different labels"
    probabilities = None if b.probabilities is None else b.probabilities[:, np.argsort(recode)][order]
    return Predictions(a.classes, a.paths, a.hashes, true, predicted, probabilities)


def _below(paths: Sequence[str]) -> list[str]:
    """Paths below the folder that all of them lie in, whatever way they are written on whichever system."""
    parts = [PurePosixPath(path.replace("\\", "/")).parts for path in paths]
    shared = next(
        (n for n, names in enumerate(zip(*(p[:-1] for p in parts), strict=False)) if len(set(names)) > 1), None
    )
    depth = min(len(p) - 1 for p in parts) if shared is None else shared
    return ["/".join(p[depth:]) for p in parts]
