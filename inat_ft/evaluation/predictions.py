"""CSV files of predictions, `path,true,predicted[,sha256][,p_<class>...]`, and predictions on the same images."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import PluginError, RecordError, UsageError, did_you_mean
from inat_ft.metrics.base import Predictions, installed_metrics, measure
from inat_ft.metrics.bounds import Floats
from inat_ft.metrics.builtin import proportion
from inat_ft.records import ClassMetrics, MetricValue, atomic_write
from inat_ft.text import csv_cell, from_csv_cell

_PREFIX = "p_"
_NEEDED = ("path", "true", "predicted")
Row = tuple[int, list[str]]
"""The line that a row of a CSV file ends in, and its cells."""


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark. Raises UsageError when it is missing."""
    if not file.exists():
        raise UsageError(f"no such file: {file}", f"paths are relative to {Path.cwd()}")
    if not file.is_file():
        raise RecordError(f"{file} is not a regular file")
    if not file.stat().st_size:  # also of files in /proc, which can block or never end
        raise RecordError(f"{file} is empty")
    data = file.read_bytes()
    return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def read_csv(file: Path, needed: Collection[str] = ()) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of a CSV file.

    needed: column names that tell the separator: comma, semicolon or tab. Raises UsageError when the file is missing,
    RecordError when it cannot be read.
    """
    try:
        text = read_text(file)
        header = text.partition("\n")[0].rstrip("\r")
        names = {mark: set(next(csv.reader([header], delimiter=mark), [])) for mark in ",;\t"}
        mark = next((mark for mark, found in names.items() if set(needed) <= found), ",")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        found = [(reader.line_num, [*map(from_csv_cell, row)]) for row in reader]
        return (found[0][1] if found else []), [line for line in found[1:] if line[1]]
    except UnicodeDecodeError as error:
        raise RecordError(f"cannot read {file} as CSV: it is not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise RecordError(f"cannot read {file} as CSV: {error}") from None


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically; floats get nine significant digits, and text is written by `csv_cell`."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        for row in chain([header], rows):
            writer.writerow([_cell(value) for value in row])


def _cell(value: object) -> object:
    return csv_cell(value) if isinstance(value, str) else f"{value:.9g}" if isinstance(value, float) else value


def from_probabilities(
    classes: Sequence[str], paths: Sequence[str], hashes: Sequence[str], true: NDArray[np.int64], p: Floats
) -> Predictions:
    """Return predictions of the class with the highest probability; p: float64 `[N, C]`."""
    return Predictions(tuple(classes), paths, hashes, true, p.argmax(1).astype(np.int64), p)


def write_predictions(file: Path, predictions: Predictions) -> None:
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
    if missing := sorted(set(_NEEDED) - set(header)):
        # The other columns are not listed: a record can name any file.
        problem = f"{file} lacks the columns {', '.join(missing)}{did_you_mean(missing[0], header)}"
        raise RecordError(problem, "the first line must be path,true,predicted[,sha256][,p_<class>...]")
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
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
            problem = f"{file}, line {line}: {path!r} is already in line {seen[path]}"
            raise RecordError(problem, "write one row per image")
        seen[path] = line


def _parse(file: Path, place: dict[str, int], rows: list[Row]) -> Predictions:
    true, predicted = ([cells[place[key]] for _, cells in rows] for key in ("true", "predicted"))
    of_taxon = {"p_taxon"} if "taxon" in place and "taxon_confidence" not in place else set()  # `predict --taxa`
    columns = [name for name in place if name.startswith(_PREFIX) and name not in of_taxon]
    classes = tuple(name.removeprefix(_PREFIX) for name in columns) or tuple(sorted({*true, *predicted}))
    index = {name: number for number, name in enumerate(classes)}
    for number, name in enumerate((*true, *predicted)):
        if name not in index:
            line, _ = rows[number % len(rows)]
            raise RecordError(f"{file}, line {line}: class {name!r} has no column {_PREFIX}{name}")
    return Predictions(
        classes,
        [cells[place["path"]] for _, cells in rows],
        [cells[place["sha256"]].lower() if "sha256" in place else "" for _, cells in rows],
        np.array([index[name] for name in true], np.int64),
        np.array([index[name] for name in predicted], np.int64),
        _probabilities(file, rows, [place[name] for name in columns]) if columns else None,
    )


def _probabilities(file: Path, rows: list[Row], places: list[int]) -> Floats:
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
        raise RecordError(f"{file}, line {rows[row][0]}: {what} ({got})")
    return np.asarray(p / sums)


def align(a: Predictions, b: Predictions) -> Predictions | str:
    """Return `b` in the order of the images of `a`, matched by content or else by path; or why that is impossible."""
    if set(a.classes) != set(b.classes):
        return different_classes(a.classes, b.classes)
    by_content = all(a.hashes) and all(b.hashes)
    keys_a, keys_b = (a.hashes, b.hashes) if by_content else (_relative(a.paths), _relative(b.paths))
    if sorted(keys_a) != sorted(keys_b):
        shared = len(set(keys_a) & set(keys_b))
        return f"they were tested on different images ({shared:,} in common)"
    order = np.empty(len(keys_a), np.int64)
    order[np.argsort(keys_a, kind="stable")] = np.argsort(keys_b, kind="stable")
    index = {name: number for number, name in enumerate(a.classes)}
    recode = np.array([index[name] for name in b.classes])
    true, predicted = recode[b.true][order], recode[b.predicted][order]
    if count := int((true != a.true).sum()):
        return f"{count:,} of their test images have different labels"
    probabilities = None if b.probabilities is None else b.probabilities[:, np.argsort(recode)][order]
    groups = a.groups if a.groups is not None or b.groups is None else b.groups[order]
    return Predictions(a.classes, a.paths, a.hashes, true, predicted, probabilities, groups)


def different_classes(a: Sequence[str], b: Sequence[str]) -> str:
    """Return the statement that two lists of classes differ, with three that only one has."""
    return f"they have different classes ({', '.join(sorted(set(a) ^ set(b))[:3])})"


def _relative(paths: Sequence[str]) -> list[str]:
    """Return paths relative to the folder that contains all of them, with either kind of slash."""
    parts = [PurePosixPath(path.replace("\\", "/")).parts for path in paths]
    first, last = min(p[:-1] for p in parts), max(p[:-1] for p in parts)
    pairs = enumerate(zip(first, last, strict=False))
    depth = next((depth for depth, names in pairs if len(set(names)) > 1), len(first))
    return ["/".join(p[depth:]) for p in parts]


class Scores(NamedTuple):
    """Metrics by name, metrics of each class, and the errors of the plugin metrics that failed."""

    metrics: dict[str, MetricValue]
    per_class: list[ClassMetrics]
    errors: list[PluginError]


def score(p: Predictions) -> Scores:
    """Compute every installed metric that the predictions allow; a plugin that fails does not stop the others."""
    installed, errors = installed_metrics()
    found: dict[str, MetricValue] = {}
    for metric in installed:
        if p.probabilities is None and metric.needs_probabilities:
            continue
        try:
            found[metric.name] = measure(metric, p)
        except PluginError as error:
            errors.append(error)
    table = confusion(p)
    counts = (column.tolist() for column in (table.diagonal(), table.sum(1), table.sum(0)))
    per_class = [
        ClassMetrics(
            name=name,
            num_images=true,
            precision=proportion(hits, predicted),
            recall=proportion(hits, true),
            f1=_f1(hits, true + predicted),
        )
        for name, hits, true, predicted in zip(p.classes, *counts, strict=True)
    ]
    return Scores(found, per_class, errors)


def confusion(p: Predictions) -> NDArray[np.int64]:
    """Return the number of images by true (rows) and predicted class (columns), `[C, C]`."""
    number = len(p.classes)
    return np.bincount(p.true * number + p.predicted, minlength=number**2).reshape(number, number)


def _f1(hits: int, images: int) -> MetricValue:
    """Return the F1 of a class with `images` true plus predicted images.

    F1 is 2j / (1 + j) for the proportion j of hits among the images that are true or predicted, which gives its interval.
    """
    share = proportion(hits, images - hits)
    value, low, high = (part and 2 * part / (1 + part) for part in (share.value, share.low, share.high))
    return MetricValue(value=value or 0.0, low=low, high=high, method=share.method)
