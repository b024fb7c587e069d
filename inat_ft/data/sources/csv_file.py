"""Images listed in a CSV with the columns path, label and, optionally, subset and taxonomic ranks."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from inat_ft.data.sources.base import ImageList, ReadOptions, Source
from inat_ft.errors import DataError
from inat_ft.images.boxes import add_box, shared_file
from inat_ft.text import from_csv_cell


class CsvFile(Source):
    """A CSV with the columns path, label and, optionally, subset; paths are relative to its folder.

    The labels can also be those of a column that is named like a taxonomic rank. With the columns x, y, w and h, an image is
    the part of a file in this box.
    """

    supports_classes_from = True

    def recognizes(self, location: Path) -> bool:
        return location.suffix.lower() == ".csv" and location.is_file()

    def read(self, location: Path, options: ReadOptions) -> ImageList:
        images = ImageList(location.parent, "CSV", location.name)
        lines: dict[str, int] = {}
        column = options.classes_from or "label"
        for line, row in read_rows(location, column, boxes=True):
            path = row["path"]
            try:
                if path in lines:
                    raise DataError(f"{path} is already in line {lines[path]}", "remove one of them")
                images.add(path, row[column], row.get("subset", ""), shared_file(path))
            except DataError as error:
                raise DataError(f"{location}, line {line}: {error.message}", error.hint) from None
            lines[path] = line
        return images


def read_rows(file: Path, needed: str, boxes: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV, by column, with their line numbers; the path `./a.jpg` becomes `a.jpg`.

    boxes: add the boxes in the columns x, y, w and h to the paths.
    Raises DataError if the file cannot be read, lacks the column `path` or `needed`, or a row has too few or too many values.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            columns = _columns(file, needed, next(reader, []))
            for values in reader:
                if not "".join(values).strip() and len(values) < 2:
                    continue
                try:
                    row = _row(columns, values, needed, file.parent, boxes)
                except DataError as error:
                    raise DataError(f"{file}, line {reader.line_num}: {error.message}", error.hint) from None
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {file} as CSV: it is not UTF-8 ({error})", "save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {file} as CSV: {getattr(error, 'strerror', None) or error}") from None


def _columns(file: Path, needed: str, header: list[str]) -> list[str]:
    columns = [name.strip().lower() for name in header]
    if not {"path", needed} <= set(columns):
        raise DataError(
            f"{file} requires the columns path and {needed}; it has {', '.join(columns) or 'none'}",
            f"start it with the line path,{needed}; separate values by commas, not by semicolons or tabs",
        )
    if repeated := [name for number, name in enumerate(columns) if name and name in columns[:number]]:
        raise DataError(f"{file} has two columns named {repeated[0]}", "rename or remove one of them")
    return columns


def _row(columns: list[str], values: list[str], needed: str, folder: Path, boxes: bool) -> dict[str, str]:
    row = dict(zip(columns, (from_csv_cell(value.strip(" \t")) for value in values), strict=False))
    if len(values) > len(columns):
        raise DataError("more values than columns", "put a value that contains a comma in double quotes")
    if missing := ["path"] * (not row.get("path")) + [needed] * (needed not in row):
        raise DataError(f"no value for {' and '.join(missing)}", "add it")
    path = _with_slashes(row["path"], folder)
    return dict.fromkeys(columns, "") | row | {"path": add_box(path, row) if boxes else path}


def _with_slashes(path: str, folder: Path) -> str:
    """Return a path of a list. Windows separates folders by backslashes, which elsewhere may be part of a file name."""
    if "\\" in path and (os.name == "nt" or not (folder / path).exists()):
        path = path.replace("\\", "/")
    return PurePosixPath(path).as_posix()
