"""Images listed in a CSV with the columns path, label and, if given, subset; and CSVs that name images at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from inat_ft.data.sources.base import Exclusions, Files, is_text, real_path
from inat_ft.errors import DataError


def read_csv_file(file: Path, exclude: Exclusions) -> Files:
    """Return the files that a CSV names, paths relative to its folder. Raises DataError naming the line that is wrong."""
    files = Files(file.parent, "CSV", csv=file.name, exclude=exclude)
    lines: dict[str, int] = {}
    inside = _Inside(file.parent)
    for line, row in read_rows(file, ("path", "label")):
        path, label, subset = _row(f"{file}, line {line}", row)
        if path in lines:
            raise DataError(
                f"{file}, line {line}: {path} stands in line {lines[path]} already", "remove one of the two"
            )
        lines[path] = line
        if exclude.contains(path):
            continue
        files.classes.add(label)
        if not is_text(path):
            files.leave_out_unnamed(path)
        elif inside(path):
            files.add(path, label, subset)
        else:
            files.leave_out(path, "a link out of the folder")
    if not files.paths:
        raise DataError(f"{file} lists no images", "give it a line path,label for each")
    return files


def read_rows(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV by column, with their line numbers. `path` is put as images are named: `./a.jpg` is `a.jpg`.

    Raises DataError when it cannot be read, lacks a needed column, or a row has no value for one or more than columns.
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
                    why = "more values than columns; put a value with a comma in it in double quotes"
                    raise DataError(f"{file}, line {reader.line_num}: {why}")
                if missing := [column for column in needed if column not in row]:
                    raise DataError(f"{file}, line {reader.line_num}: no value for {' and '.join(missing)}")
                row["path"] = row["path"] and PurePosixPath(row["path"]).as_posix()
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {file} as CSV: it is not UTF-8 ({error})", "save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"cannot read {file} as CSV: {reason}") from None


def _require_columns(file: Path, columns: list[str], needed: Sequence[str]) -> None:
    if not set(needed) <= set(columns):
        raise DataError(
            f"{file} needs the columns {' and '.join(needed)}; it has: {', '.join(columns) or 'none'}",
            f"begin it with the line {','.join(needed)} and put commas between values, no semicolons or tabs",
        )
    if twice := [name for number, name in enumerate(columns) if name and name in columns[:number]]:
        raise DataError(f"{file} has the column {twice[0]} twice", "rename or remove one of them")


def _row(where: str, row: dict[str, str]) -> tuple[str, str, str]:
    path, label, subset = row["path"], row["label"], row.get("subset", "")
    if not path or not label:
        raise DataError(f"{where}: path or label is empty")
    if not is_text(label):
        raise DataError(f"{where}: the label {label!r} contains a NUL character", "remove it")
    if subset not in ("", "train", "val", "test"):
        raise DataError(f"{where}: subset is {subset!r}, not train, val, test or empty")
    relative = PurePosixPath(path)
    if relative.is_absolute():
        raise DataError(f"{where}: {path} is absolute", "name it relative to the folder of the CSV")
    if ".." in relative.parts:
        raise DataError(f"{where}: {path} must lie below the folder of the CSV", "put the CSV further up")
    return path, label, subset


class _Inside:
    """Whether a path below a folder stays below it when links are followed; each folder is looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.known: dict[str, bool] = {}

    def __call__(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        if folder not in self.known:
            self.known[folder] = self._leads_inside(os.path.join(self.root, folder))
        whole = os.path.join(self.root, path)
        return self.known[folder] and not (os.path.islink(whole) and not self._leads_inside(whole))

    def _leads_inside(self, link: str) -> bool:
        return real_path(link).is_relative_to(self.root)
