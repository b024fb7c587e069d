"""CSV and JSON files of this and of other programs, read with one error per cause."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inat_ft.errors import RecordError, UsageError
from inat_ft.records import atomic_write


class Row(NamedTuple):
    """A row of a CSV file, and the line that it ends in."""

    line: int
    cells: list[str]


def read_csv(file: Path, needed: Collection[str] = ()) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of a CSV file in UTF-8 or UTF-16.

    needed: column names that tell the separator: comma, semicolon or tab. Raises UsageError when the file is missing,
    RecordError when it cannot be read.
    """
    try:
        text = _text(file)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, needed))
        return next(reader, []), [Row(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise RecordError(f"cannot read {file} as CSV: it is not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise RecordError(f"cannot read {file} as CSV: {error}") from None


def read_objects(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON file: one object, a list of objects, or one object per line.

    Raises UsageError when the file is missing, RecordError when it cannot be read.
    """
    try:
        text = _text(file)
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError:
            loaded = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"cannot read {file} as JSON: {error}") from None
    objects = loaded if isinstance(loaded, list) else [loaded]
    if not objects or not all(isinstance(value, dict) for value in objects):
        raise RecordError(f"{file} has no JSON objects")
    return objects


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically; floats get nine significant digits."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row])


def _text(file: Path) -> str:
    """Read a text file as UTF-8, or as UTF-16 when it starts with that byte order mark."""
    if not file.exists():
        raise UsageError(f"no such file: {file}")
    if not file.is_file():
        raise RecordError(f"{file} is not a regular file")
    data = file.read_bytes()
    return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def _delimiter(text: str, needed: Collection[str]) -> str:
    header = text.partition("\n")[0].rstrip("\r")
    names = {mark: set(next(csv.reader([header], delimiter=mark), [])) for mark in ",;\t"}
    return next((mark for mark, found in names.items() if set(needed) <= found), ",")
