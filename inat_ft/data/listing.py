"""Images listed in a CSV with the columns path, label and, if given, subset."""

from __future__ import annotations

import csv
import os
from pathlib import Path, PurePosixPath

from inat_ft.data.files import Files
from inat_ft.errors import DataError


def read_listing(file: Path) -> Files:
    """The files that a CSV names, paths relative to its folder. Raises DataError naming the line that is wrong."""
    files = Files(file.parent, "CSV")
    lines: dict[str, int] = {}
    inside = _Inside(file.parent)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            columns = [name.strip().lower() for name in next(reader, [])]
            if not {"path", "label"} <= set(columns):
                raise DataError(f"{file} needs the columns path and label; it has: {', '.join(columns) or 'none'}")
            for values in filter(None, reader):
                where = f"{file}, line {reader.line_num}"
                path, label, subset = _row(where, dict(zip(columns, values, strict=False)), len(values) > len(columns))
                if path in lines:
                    raise DataError(f"{where}: {path} stands in line {lines[path]} already")
                lines[path] = reader.line_num
                files.classes.add(label)
                if inside(path):
                    files.add(path, label, subset)
                else:
                    files.leave(path, "a link out of the folder")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {file} as CSV: {error}") from None
    if not files.paths:
        raise DataError(f"{file} lists no images")
    return files


def _row(where: str, row: dict[str, str], too_long: bool) -> tuple[str, str, str]:
    path, label, subset = ((row.get(key) or "").strip() for key in ("path", "label", "subset"))
    if too_long:
        raise DataError(f"{where}: more values than columns; put a value with a comma in it in double quotes")
    if not path or not label:
        raise DataError(f"{where}: path or label is empty")
    if subset not in ("", "train", "val", "test"):
        raise DataError(f"{where}: subset is {subset!r}, not train, val, test or empty")
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{where}: {path} must lie below the folder of the CSV")
    return relative.as_posix(), label, subset


class _Inside:
    """Whether a path below a folder stays below it when links are followed; each folder is looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.known: dict[str, bool] = {}

    def __call__(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        if folder not in self.known:
            self.known[folder] = (self.root / folder).resolve().is_relative_to(self.root)
        whole = os.path.join(self.root, path)
        return self.known[folder] and not (os.path.islink(whole) and not self._leads_inside(whole))

    def _leads_inside(self, link: str) -> bool:
        return Path(link).resolve().is_relative_to(self.root)
