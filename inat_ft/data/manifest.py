"""The manifest: a CSV of the images of a data set, with their labels and subsets.

The first line is a comment with a JSON header; the columns `path,label,subset,sha256,group` follow. Paths are relative to the
root, and the root is relative to the manifest's folder, so that both can move together.
"""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.sources.base import LeftOut, Reason
from inat_ft.errors import DataError, UsageError
from inat_ft.records import atomic_write

SUBSETS = ("train", "val", "test")

_MARK = "# inat-ft manifest "
_COLUMNS = ("path", "label", "subset", "sha256", "group")
_SCHEMA = 1
_SPLIT_AGAIN = "create it again: inat-ft split DATA --force"


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

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by class and subset."""
        table = np.zeros((len(self.classes), len(SUBSETS)), np.int64)
        np.add.at(table, (self.labels, self.subsets), 1)
        return {
            name: dict(zip(SUBSETS, map(int, row), strict=True)) for name, row in zip(self.classes, table, strict=True)
        }

    def subset_fingerprint(self, subset: str) -> str:
        """Return the SHA-256 in hex of the images and labels of a subset, independent of order and paths."""
        pairs = sorted(f"{self.hashes[row]} {self.classes[self.labels[row]]}" for row in self.rows(subset).tolist())
        return hashlib.sha256("\n".join(pairs).encode()).hexdigest()


def manifest_text(manifest: Manifest) -> str:
    """Return the content of the file. The same images, options and location give the same bytes on any machine."""
    header = {
        "schema": _SCHEMA,
        "root": Path(os.path.relpath(manifest.root, manifest.path.parent.resolve())).as_posix(),
        "classes": manifest.classes,
        "seed": manifest.seed,
        **manifest.made,
        "fingerprint": manifest.fingerprint,
        "left_out": manifest.left_out,
    }
    return _MARK + json.dumps(header, ensure_ascii=True) + "\n" + _rows_text(manifest)


def _rows_text(manifest: Manifest) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(_COLUMNS)
    labels = (manifest.classes[label] for label in manifest.labels.tolist())
    subsets = (SUBSETS[subset] for subset in manifest.subsets.tolist())
    for row in zip(manifest.paths, labels, subsets, manifest.hashes, manifest.groups, strict=True):
        has_return = "\r" in "".join(row)  # Python before 3.13 does not quote it
        (quoting if has_return else writer).writerow(row)
    return out.getvalue()


def check_output(path: Path) -> None:
    """Raise UsageError if a manifest cannot be written to a path."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UsageError(f"--out {path} exists and is not a file", "choose a file, such as --out splits/photos.csv")
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "is not writable" if folder.is_dir() else "is not a folder"
        raise UsageError(f"cannot write --out {path}: {folder} {problem}", "choose another file with --out")


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
            raise UsageError(
                f"{manifest.path} already contains a different split",
                "replace it with --force, or choose another --out",
            )
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
            header = json.loads(first.removeprefix(_MARK))
            start = raw.tell()
            fingerprint = hashlib.sha256()
            while block := raw.read(2**20):
                fingerprint.update(block)
            if fingerprint.hexdigest() != header["fingerprint"]:
                raise DataError(
                    f"the manifest {path} was edited or damaged: its rows do not match its fingerprint", _SPLIT_AGAIN
                )
            raw.seek(start)
            with io.TextIOWrapper(raw, encoding="utf-8", newline="") as text, _garbage_collection_off():
                reader = csv.reader(text)
                next(reader)
                columns = list(zip(*reader, strict=True))
        manifest = _manifest(path, root, header, columns)
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}", "check its permissions") from error
    except (UnicodeDecodeError, csv.Error, ValueError, KeyError, TypeError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"the manifest {path} is damaged: {reason}", _SPLIT_AGAIN) from error
    for file in manifest.paths:
        if (".." in file and ".." in file.split("/")) or os.path.isabs(file) or "\0" in file:
            raise DataError(
                f"the manifest {path} lists {file!r}, which is outside the folder of the images",
                "use only manifests that `inat-ft split` wrote, from people you trust",
            )
    return manifest


def _manifest(path: Path, root: Path | None, header: dict[str, Any], columns: list[tuple[str, ...]]) -> Manifest:
    if header["schema"] != _SCHEMA:
        raise DataError(f"{path} has schema {header['schema']}; this version reads schema {_SCHEMA}", _SPLIT_AGAIN)
    _check_types(header)
    paths, labels, subsets, hashes, groups = columns or [()] * len(_COLUMNS)
    index = {name: number for number, name in enumerate(header["classes"])}
    codes = {name: number for number, name in enumerate(SUBSETS)}
    known = ("schema", "root", "classes", "seed", "fingerprint", "left_out")
    return Manifest(
        path,
        (root or path.parent / header["root"]).resolve(),
        tuple(header["classes"]),
        paths,
        np.fromiter((index[label] for label in labels), np.int64, len(labels)),
        np.fromiter((codes[subset] for subset in subsets), np.uint8, len(subsets)),
        hashes,
        groups,
        [LeftOut(file, text, Reason(*kind) if kind else None) for file, text, *kind in header["left_out"]],
        header["seed"],
        {key: value for key, value in header.items() if key not in known},
        header["fingerprint"],
    )


def _check_types(header: dict[str, Any]) -> None:
    """Raise TypeError or ValueError if a value of the header has the wrong type."""
    classes, exclude, left_out = header["classes"], header.get("exclude", []), header["left_out"]
    texts = [
        header["root"],
        header.get("csv", ""),
        header.get("source", ""),
        *exclude,
        *classes,
        *(text for left in left_out for text in left),
    ]
    if not all(isinstance(each, list) for each in (classes, exclude, left_out)):
        raise TypeError("classes, exclude and left_out must be lists")
    if not all(isinstance(text, str) for text in texts) or not isinstance(header["seed"], int):
        raise TypeError("names must be text, and the seed a number")
    if len(set(classes)) < len(classes):
        raise ValueError("a class is listed twice")


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Turn off the search for reference cycles, which is slow while millions of rows are created."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def find_manifest(folder: Path = Path("splits")) -> Path:
    """Return the newest manifest in a folder. Raises UsageError if there is none."""
    found = sorted(folder.glob("*.csv"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        raise UsageError(f"no manifest in {folder}/", "create one: inat-ft split DATA")
    return found[-1]
