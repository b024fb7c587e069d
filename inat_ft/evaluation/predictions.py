"""The CSV of predictions, `path,true,predicted[,sha256][,p_<class>...]`, and predictions on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import RecordError
from inat_ft.evaluation.caveats import NotComparable, Reason
from inat_ft.evaluation.tabular import Row, read_csv, write_csv
from inat_ft.metrics.predictions import Predictions, from_probabilities

__all__ = ["Predictions", "align", "from_probabilities", "read_predictions", "write_predictions"]

_PREFIX = "p_"
_NEEDED = ("path", "true", "predicted")


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Write the CSV atomically."""
    classes, p = predictions.classes, predictions.probabilities
    columns = [f"{_PREFIX}{name}" for name in classes] if p is not None else []

    def rows() -> Iterator[list[object]]:
        for row, path in enumerate(predictions.paths):
            true, predicted = classes[predictions.true[row]], classes[predictions.predicted[row]]
            yield [path, true, predicted, predictions.hashes[row], *(p[row].tolist() if p is not None else [])]

    write_csv(file, ["path", "true", "predicted", "sha256", *columns], rows())


def read_predictions(file: Path) -> Predictions:
    """Read the CSV of this or another program. Raises UsageError, or RecordError naming file, line and value."""
    header, rows = read_csv(file, _NEEDED)
    missing = sorted(set(_NEEDED) - set(header))
    if missing:
        # The content is shown only when it resembles predictions: a record can name any file.
        shown = f"; it has: {', '.join(header)}" if len(missing) < len(_NEEDED) else ""
        raise RecordError(
            f"{file} lacks the columns {', '.join(missing)}{shown}",
            "the first line must be path,true,predicted[,sha256][,p_<class>...]",
        )
    repeated = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if repeated:
        raise RecordError(f"{file} has the column {repeated[0]!r} twice")
    if not rows:
        raise RecordError(f"{file} has no predictions")
    place = {name: number for number, name in enumerate(header)}
    _check_rows(file, place, rows)
    return _parse(file, place, rows)


def _check_rows(file: Path, place: dict[str, int], rows: list[Row]) -> None:
    seen: dict[str, int] = {}
    for line, cells in rows:
        if len(cells) != len(place):
            raise RecordError(f"{file}, line {line}: {len(cells)} values for {len(place)} columns")
        for name in _NEEDED:
            if not cells[place[name]].strip():
                raise RecordError(f"{file}, line {line}: no value for {name}")
        path = cells[place["path"]]
        if path in seen:
            raise RecordError(
                f"{file}, line {line}: {path!r} is already in line {seen[path]}", "write one row per image"
            )
        seen[path] = line


def _parse(file: Path, place: dict[str, int], rows: list[Row]) -> Predictions:
    true, predicted = ([cells[place[key]] for _, cells in rows] for key in ("true", "predicted"))
    columns = [name for name in place if name.startswith(_PREFIX)]
    classes = tuple(name.removeprefix(_PREFIX) for name in columns) or tuple(sorted({*true, *predicted}))
    index = {name: number for number, name in enumerate(classes)}
    for number, name in enumerate((*true, *predicted)):
        if name not in index:
            line = rows[number % len(rows)].line
            raise RecordError(f"{file}, line {line}: class {name!r} has no column {_PREFIX}{name}")
    return Predictions(
        classes,
        [cells[place["path"]] for _, cells in rows],
        [cells[place["sha256"]].lower() if "sha256" in place else "" for _, cells in rows],
        np.array([index[name] for name in true], np.int64),
        np.array([index[name] for name in predicted], np.int64),
        _probabilities(file, rows, [place[name] for name in columns]) if columns else None,
    )


def _probabilities(file: Path, rows: list[Row], places: list[int]) -> NDArray[np.float64]:
    try:
        p = np.array([[float(cells[place]) for place in places] for _, cells in rows])
    except ValueError as error:
        raise RecordError(f"{file}: a probability is not a number: {error}") from None
    outside = ~(np.isfinite(p) & (p >= 0) & (p <= 1.01)).all(1)
    sums = p.sum(1, keepdims=True)
    bad = np.flatnonzero(outside | (np.abs(sums[:, 0] - 1) > 0.01))
    if len(bad):
        row = bad[0]
        what = f"the probabilities sum to {sums[row, 0]:.4g} instead of 1"
        what = "a probability is outside 0 to 1" if outside[row] else what
        got = ", ".join(f"{share:.4g}" for share in p[row][:4]) + (", ..." if len(places) > 4 else "")
        raise RecordError(f"{file}, line {rows[row].line}: {what} ({got})")
    scaled: NDArray[np.float64] = p / sums
    return scaled


def align(a: Predictions, b: Predictions) -> Predictions | NotComparable:
    """Return `b` in the order of the images of `a`, matched by content or else by path; or why that is impossible."""
    if set(a.classes) != set(b.classes):
        return NotComparable.of(Reason.DIFFERENT_CLASSES, classes=sorted(set(a.classes) ^ set(b.classes))[:3])
    by_content = all(a.hashes) and all(b.hashes)
    keys_a, keys_b = (a.hashes, b.hashes) if by_content else (_relative(a.paths), _relative(b.paths))
    if sorted(keys_a) != sorted(keys_b):
        return NotComparable.of(Reason.DIFFERENT_IMAGES, shared=len(set(keys_a) & set(keys_b)))
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys_b):
        places.setdefault(key, []).append(place)
    order = np.array([places[key].pop(0) for key in keys_a])
    recode = np.array([a.classes.index(name) for name in b.classes])
    true, predicted = recode[b.true][order], recode[b.predicted][order]
    if (true != a.true).any():
        return NotComparable.of(Reason.DIFFERENT_LABELS, count=int((true != a.true).sum()))
    probabilities = None if b.probabilities is None else b.probabilities[:, np.argsort(recode)][order]
    return Predictions(a.classes, a.paths, a.hashes, true, predicted, probabilities)


def _relative(paths: Sequence[str]) -> list[str]:
    """Return paths relative to the folder that contains all of them, with either kind of slash."""
    parts = [PurePosixPath(path.replace("\\", "/")).parts for path in paths]
    levels = enumerate(zip(*(p[:-1] for p in parts), strict=False))
    shared = next((depth for depth, names in levels if len(set(names)) > 1), None)
    depth = min(len(p) - 1 for p in parts) if shared is None else shared
    return ["/".join(p[depth:]) for p in parts]
