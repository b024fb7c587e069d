"""The manifest: a CSV of the images of a data set, with their labels and subsets.

The first line is a comment with a JSON header; the columns `path,label,subset,sha256,group` follow. Paths are relative to the
root, and the root is relative to the manifest's folder, so that both can move together.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from inat_ft.data.sources.base import LeftOut
from inat_ft.errors import DataError, UsageError
from inat_ft.paths import relative_path
from inat_ft.records import atomic_write
from inat_ft.text import csv_cell, from_csv_cell

SUBSETS = ("train", "val", "test")

_MARK = "# inat-ft manifest "
_COLUMNS = ("path", "label", "subset", "sha256", "group")
_SCHEMA = 1
_FORMULA = re.compile("(?<=[,;])[=+@-]")
"""A character of a name in the header at which a spreadsheet, which splits the line there, would start a formula."""
_OWN_KEYS = ("schema", "root", "classes", "seed", "fingerprint", "left_out")
_SPLIT_AGAIN = "create it again: inat-ft split DATA --force"


class _Header(BaseModel):
    """The keys of the header whose types are checked."""

    root: str
    classes: list[str]
    seed: int
    fingerprint: str
    left_out: list[LeftOut]
    exclude: list[str] = []
    csv: str = ""
    source: str = ""


@dataclass(frozen=True)
class Manifest:
    """Images in the order of their paths.

    root: absolute; paths: relative to it, with forward slashes; labels: int64 `[N]`, indices of classes; subsets: uint8
    `[N]`, indices of SUBSETS; hashes: SHA-256 of each file in hex; groups: images with the same group are in one subset, ""
    for none; left_out: files that are not used; made: the other keys of the header, such as the options of `split`.
    """

    path: Path
    root: Path
    classes: tuple[str, ...]
    paths: Sequence[str]
    labels: NDArray[np.int64]
    subsets: NDArray[np.uint8]
    hashes: Sequence[str]
    groups: Sequence[str]
    left_out: Sequence[LeftOut] = ()
    seed: int = 0
    made: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    """SHA-256 in hex of the rows of the file; it does not depend on the root."""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", hashlib.sha256(_rows_text(self).encode()).hexdigest())

    def rows(self, subset: str) -> NDArray[np.int64]:
        """Return the row numbers of a subset, int64, ascending."""
        return np.flatnonzero(self.subsets == SUBSETS.index(subset))

    @cached_property
    def files(self) -> list[Path]:
        """The path of each image. It may end in a box (boxes.py)."""
        return [self.root / path for path in self.paths]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by class and subset."""
        table = np.zeros((len(self.classes), len(SUBSETS)), np.int64)
        np.add.at(table, (self.labels, self.subsets), 1)
        rows = (dict(zip(SUBSETS, row, strict=True)) for row in table.tolist())
        return dict(zip(self.classes, rows, strict=True))

    def subset_fingerprint(self, subset: str) -> str:
        """Return the SHA-256 in hex of the images and labels of a subset, independent of order and paths."""
        pairs = sorted(f"{self.hashes[row]} {self.classes[self.labels[row]]}" for row in self.rows(subset).tolist())
        return hashlib.sha256("\n".join(pairs).encode()).hexdigest()


def manifest_text(manifest: Manifest) -> str:
    """Return the content of the file. The same images, options and location give the same bytes on any machine."""
    header = {
        "schema": _SCHEMA,
        "root": relative_path(manifest.root, manifest.path.parent.resolve()),
        "classes": manifest.classes,
        "seed": manifest.seed,
        **manifest.made,
        "fingerprint": manifest.fingerprint,
        "left_out": manifest.left_out,
    }
    text = _FORMULA.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(header, ensure_ascii=True))
    return _MARK + text + "\n" + _rows_text(manifest)


def _rows_text(manifest: Manifest) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(_COLUMNS)
    named = (manifest.classes[label] for label in manifest.labels.tolist())
    subsets = (SUBSETS[subset] for subset in manifest.subsets.tolist())
    paths, labels, groups = (map(csv_cell, column) for column in (manifest.paths, named, manifest.groups))
    for row in zip(paths, labels, subsets, manifest.hashes, groups, strict=True):
        (quoting if "\r" in "".join(row) else writer).writerow(row)  # Python before 3.13 does not quote it
    return out.getvalue()


def write_manifest(manifest: Manifest, force: bool = False) -> bool:
    """Write the file atomically; return False if the same file exists.

    Raises UsageError if a different one exists, unless `force`.
    """
    text = manifest_text(manifest).encode()
    if manifest.path.exists():
        if manifest.path.read_bytes() == text:
            os.utime(manifest.path)  # `train` uses the newest manifest by default
            return False
        if not force:
            problem = f"{manifest.path} already contains a different split"
            raise UsageError(problem, "replace it with --force, or choose another --out")
    with atomic_write(manifest.path) as temporary:
        temporary.write_bytes(text)
    return True


def read_manifest(path: Path, root: Path | None = None) -> Manifest:
    """Read a manifest. root: the folder of the images, if it has moved. Raises UsageError or DataError."""
    try:
        if not path.is_file():
            raise UsageError(f"no such manifest: {path}", "create one: inat-ft split DATA")
        with path.open("rb") as raw:
            first = raw.readline().decode()
            if not first.startswith(_MARK):
                raise DataError(f"{path} is not a manifest of inat-ft", "create one: inat-ft split DATA")
            values = json.loads(first.removeprefix(_MARK))
            if values["schema"] != _SCHEMA:
                message = f"{path} has schema {values['schema']}; this version reads schema {_SCHEMA}"
                raise DataError(message, _SPLIT_AGAIN)
            start = raw.tell()
            if hashlib.file_digest(raw, "sha256").hexdigest() != values["fingerprint"]:
                message = f"the manifest {path} was edited or damaged: its rows do not match its fingerprint"
                raise DataError(message, _SPLIT_AGAIN)
            raw.seek(start)
            with io.TextIOWrapper(raw, encoding="utf-8", newline="") as text:
                manifest = _read_rows(path, root, values, csv.reader(text))
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}", "check its permissions") from error
    except (ValueError, KeyError, TypeError, csv.Error, StopIteration, RecursionError) as error:
        finding = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{finding['loc'][0]}: {finding['msg']}" if finding else f"{type(error).__name__}: {error}"
        raise DataError(f"the manifest {path} is damaged: {reason}", _SPLIT_AGAIN) from error
    for file in manifest.paths:
        if (".." in file and ".." in file.split("/")) or os.path.isabs(file) or "\0" in file:
            problem = f"the manifest {path} lists {file!r}, which is outside the folder of the images"
            raise DataError(problem, "use only manifests that `inat-ft split` wrote, from people you trust")
    return manifest


def _read_rows(path: Path, root: Path | None, values: dict[str, Any], reader: Iterator[list[str]]) -> Manifest:
    header = _Header.model_validate(values)
    next(reader)
    index = {name: number for number, name in enumerate(header.classes)}
    if len(index) < len(header.classes):
        raise ValueError("a class is listed twice")
    codes = {name: code for code, name in enumerate(SUBSETS)}
    paths, hashes, groups = list[str](), list[str](), list[str]()
    labels, subsets = list[int](), list[int]()
    for file, label, subset, sha256, group in reader:
        paths.append(from_csv_cell(file))
        labels.append(index[from_csv_cell(label)])
        subsets.append(codes[subset])
        hashes.append(sha256)
        groups.append(from_csv_cell(group))
    return Manifest(
        path,
        (root or path.parent / header.root).resolve(),
        tuple(header.classes),
        paths,
        np.array(labels, np.int64),
        np.array(subsets, np.uint8),
        hashes,
        groups,
        header.left_out,
        header.seed,
        {key: value for key, value in values.items() if key not in _OWN_KEYS},
        header.fingerprint,
    )


def find_manifest(folder: Path = Path("splits")) -> Path:
    """Return the newest manifest in a folder. Raises UsageError if there is none."""
    if not (found := sorted(folder.glob("*.csv"), key=lambda file: file.stat().st_mtime_ns)):
        raise UsageError(f"no manifest in {folder}/", "create one: inat-ft split DATA")
    return found[-1]
