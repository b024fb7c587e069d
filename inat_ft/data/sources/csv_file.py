"""Images listed in a CSV with the columns path, label and, optionally, subset."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from inat_ft.data.sources.base import ImageList, ReadOptions, Source
from inat_ft.errors import DataError


class CsvFile(Source):
    """A CSV with the columns path, label and, optionally, subset; paths are relative to its folder."""

    def recognizes(self, location: Path) -> bool:
        """Return whether this is a file named *.csv."""
        return location.suffix.lower() == ".csv" and location.is_file()

    def read(self, location: Path, options: ReadOptions) -> ImageList:
        """Return the images that the rows name. Raises DataError with the line that is not valid."""
        images = ImageList(location.parent, "CSV", location.name)
        lines: dict[str, int] = {}
        for line, row in read_rows(location, ("path", "label")):
            path = row["path"]
            if path in lines:
                raise DataError(
                    f"{location}, line {line}: {path} is already in line {lines[path]}", "remove one of them"
                )
            lines[path] = line
            try:
                images.add(path, row["label"], row.get("subset", ""))
            except DataError as error:
                raise DataError(f"{location}, line {line}: {error.message}", error.hint) from None
        return images


def read_rows(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV, by column, with their line numbers; the path `./a.jpg` becomes `a.jpg`.

    Raises DataError if the file cannot be read, lacks a needed column, or a row has too few or too many values.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            columns = [name.strip().lower() for name in next(reader, [])]
            _require_columns(file, columns, needed)
            for values in reader:
                if not "".join(values).strip() and len(values) < 2:
                    continue
                row = dict(zip(columns, (value.strip(" \t") for value in values), strict=False))
                if len(values) > len(columns):
                    raise DataError(
                        f"{file}, line {reader.line_num}: more values than columns",
                        "put a value that contains a comma in double quotes",
                    )
                if missing := [column for column in needed if column not in row]:
                    raise DataError(f"{file}, line {reader.line_num}: no value for {' and '.join(missing)}")
                row["path"] = row["path"] and PurePosixPath(row["path"]).as_posix()
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {file} as CSV: it is not UTF-8 ({error})", "save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {file} as CSV: {reason}") from None


def _require_columns(file: Path, columns: list[str], needed: Sequence[str]) -> None:
    if not set(needed) <= set(columns):
        raise DataError(
            f"{file} requires the columns {' and '.join(needed)}; it has {', '.join(columns) or 'none'}",
            f"start it with the line {','.join(needed)}; separate values by commas, not by semicolons or tabs",
        )
    if repeated := [name for number, name in enumerate(columns) if name and name in columns[:number]]:
        raise DataError(f"{file} has two columns named {repeated[0]}", "rename or remove one of them")
