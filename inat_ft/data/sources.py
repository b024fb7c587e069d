"""Where labelled images come from: class folders, the iNaturalist-12K layout, taxon folders, or a CSV."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from inat_ft.errors import DataError, UsageError

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
"""Ranks in the folder names of iNaturalist 2021, such as 00012_Animalia_Annelida_..._terrestris."""

_IGNORED = {"thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db"}
_TEST_NAMES = ("test", "val")
_TAXON = re.compile(r"^\d{5}_" + "_".join(["([^_]+)"] * 7) + "$")


@dataclass
class Files:
    """Files that should be images: path (posix, relative to the root), label, and subset where the source says it.

    subsets holds "" for images that are to be split.
    """

    root: Path
    layout: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    subsets: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, label: str, subset: str) -> None:
        """Take up one file."""
        self.paths.append(path)
        self.labels.append(label)
        self.subsets.append(subset)


def find_files(data: Path, classes_from: str | None = None) -> Files:
    """List the files of a folder or CSV, sorted by path. Raises UsageError or DataError naming what is amiss."""
    if not data.exists():
        raise UsageError(f"no such folder: {data}")
    if data.is_file():
        if data.suffix.lower() != ".csv":
            raise UsageError(f"{data} is neither a folder of images nor a .csv file (path,label[,subset])")
        return _from_csv(data)
    files = _from_folders(data, classes_from)
    if not files.paths:
        raise DataError(f"{data} holds no class folders with files in them", _expected())
    order = sorted(range(len(files.paths)), key=files.paths.__getitem__)
    files.paths = [files.paths[place] for place in order]
    files.labels = [files.labels[place] for place in order]
    files.subsets = [files.subsets[place] for place in order]
    files.left_out.sort()
    return files


def _expected() -> str:
    return "expected: DATA/<class>/*.jpg, or DATA/train/<class>/*.jpg with DATA/val or DATA/test, or a CSV (path,label)"


def _from_folders(root: Path, classes_from: str | None) -> Files:
    folders = _folders(root)
    names = {folder.name.lower(): folder for folder in folders}
    train, others = names.get("train"), [names[name] for name in _TEST_NAMES if name in names]
    if train is None or not others:
        if not folders:
            raise DataError(f"{root} is not an image folder: it has no class folders in it", _expected())
        files = Files(root, "class folders")
        for folder in folders:
            _add_class(files, folder, folder.name, "", classes_from)
        return files
    if len(others) == 2:
        files, subsets = (
            Files(root, "train, val and test folders"),
            [(train, "train"), (names["val"], "val"), (names["test"], "test")],
        )
    else:
        files, subsets = (
            Files(root, f"train and {others[0].name} (the reserved test set)"),
            [(train, ""), (others[0], "test")],
        )
    for folder, subset in subsets:
        inside = _folders(folder)
        if not inside:
            raise DataError(f"{folder} has no class folders in it", _expected())
        for class_folder in inside:
            _add_class(files, class_folder, class_folder.name, subset, classes_from)
    return files


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_ignored(path.name))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED


def _add_class(files: Files, folder: Path, label: str, subset: str, classes_from: str | None) -> None:
    root = files.root.resolve()
    for path in _walk(folder):
        relative = path.relative_to(files.root).as_posix()
        if not relative.isprintable() or relative != relative.encode("utf-8", "replace").decode():
            shown = relative.encode("utf-8", "backslashreplace").decode()
            files.left_out.append((ascii(shown), "the file name is not printable UTF-8"))
        elif path.is_symlink() and not path.resolve().is_relative_to(root):
            files.left_out.append((relative, "a link out of the folder"))
        elif path.is_dir():
            files.left_out.append((relative, "a link to a folder"))
        else:
            files.add(relative, _taxon(path, classes_from) if classes_from else label, subset)


def _walk(folder: Path) -> Iterator[Path]:
    """Files and links below a folder, save hidden ones; links to folders are named but not followed."""
    if folder.is_symlink():
        yield folder
        return
    for place, folders, names in os.walk(folder):
        for name in (*names, *(each for each in folders if os.path.islink(os.path.join(place, each)))):
            if not _is_ignored(name):
                yield Path(place, name)
        folders[:] = [each for each in folders if not _is_ignored(each)]


def _taxon(path: Path, rank: str) -> str:
    """The taxon of that rank in the nearest folder name that has one. Raises DataError when there is none."""
    for folder in path.parents:
        match = _TAXON.match(folder.name)
        if match:
            ranks = dict(zip(RANKS, match.groups(), strict=True))
            return f"{ranks['genus']} {ranks['species']}" if rank == "species" else ranks[rank]
    raise DataError(
        f"--classes-from {rank}: no folder of {path} is named like 00012_Kingdom_Phylum_Class_Order_Family_Genus_species"
    )


def _from_csv(file: Path) -> Files:
    files = Files(file.parent, "CSV")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = reader.fieldnames or []
            if not {"path", "label"} <= set(columns):
                raise DataError(f"{file} needs the columns path and label; it has: {', '.join(columns) or 'none'}")
            for number, row in enumerate(reader, 2):
                _add_row(files, file, number, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {file} as CSV: {error}") from None
    if not files.paths:
        raise DataError(f"{file} lists no images")
    return files


def _add_row(files: Files, file: Path, number: int, row: dict[str, str | None]) -> None:
    path, label, subset = ((row.get(key) or "").strip() for key in ("path", "label", "subset"))
    if not path or not label:
        raise DataError(f"{file}, line {number}: path or label is empty")
    if subset not in ("", "train", "val", "test"):
        raise DataError(f"{file}, line {number}: subset is {subset!r}, not train, val, test or empty")
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{file}, line {number}: {path} must lie below the folder of the CSV")
    files.add(relative.as_posix(), label, subset)
