"""The manifest: which images there are, their labels and subsets, in one CSV that says how it came about.

The first line is a comment with a JSON header; then come the columns `path,label,subset,sha256,group`. Paths are relative
to the root, and the root to the manifest's own folder, so that both can move together. Training reads images only
through a manifest.
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


@dataclass(frozen=True)
class Manifest:
    """Images in the order of their paths.

    root: absolute; paths: relative to it, posix; labels: int64 `[N]`, into classes; subsets: uint8 `[N]`, into SUBSETS;
    hashes: SHA-256 of each file in hex; groups: name of the group that an image must stay with, "" for none; left_out: files
    that are not part of it; made: how it was made, from the header.
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
    """SHA-256 in hex of the rows as the file holds them; independent of the root."""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", hashlib.sha256(_rows_text(self).encode()).hexdigest())

    def rows(self, subset: str) -> NDArray[np.int64]:
        """Numbers of the rows of a subset, int64, ascending."""
        return np.flatnonzero(self.subsets == SUBSETS.index(subset))

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by class and subset."""
        table = np.zeros((len(self.classes), len(SUBSETS)), np.int64)
        np.add.at(table, (self.labels, self.subsets), 1)
        return {
            name: dict(zip(SUBSETS, map(int, row), strict=True)) for name, row in zip(self.classes, table, strict=True)
        }

    def subset_fingerprint(self, subset: str) -> str:
        """SHA-256 in hex of the subset's images and labels, whatever their order and paths."""
        pairs = sorted(f"{self.hashes[row]} {self.classes[self.labels[row]]}" for row in self.rows(subset).tolist())
        return hashlib.sha256("\n".join(pairs).encode()).hexdigest()


def manifest_text(manifest: Manifest) -> str:
    """The manifest as its file holds it: the same images, seed and place give the same bytes on any machine."""
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
        has_return = "\r" in "".join(row)  # which Python before 3.13 writes without quotes
        (quoting if has_return else writer).writerow(row)
    return out.getvalue()


def check_output(path: Path) -> None:
    """Raise UsageError if a manifest cannot be written to a path."""
    if os.path.isdir(path):
        raise UsageError(f"--out {path} is a folder", "choose a file, such as --out splits/photos.csv")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UsageError(f"--out {path} exists and is not a regular file", "choose another file with --out")
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not folder.is_dir():
        raise UsageError(f"cannot write --out {path}: {folder} is a file", "choose a file in a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write --out {path}: {folder} is not writable", "choose another file with --out")


def write_manifest(manifest: Manifest, force: bool = False) -> bool:
    """Write the file, atomically; False when it was there already, byte for byte.

    Raises UsageError when there is a different one, unless `force`.
    """
    text = manifest_text(manifest).encode()
    if manifest.path.exists():
        if manifest.path.read_bytes() == text:
            os.utime(manifest.path)  # now the newest, which `train` takes when it is not told otherwise
            return False
        if not force:
            raise UsageError(
                f"{manifest.path} exists already and is another split",
                "name another file with --out, or replace it: --force",
            )
    with atomic_write(manifest.path) as temporary:
        temporary.write_bytes(text)
    return True


def read_manifest(path: Path, root: Path | None = None) -> Manifest:
    """Read a manifest. root: where the images are now, when they have moved. Raises UsageError or DataError."""
    try:
        if not path.is_file():
            raise UsageError(f"no such manifest: {path}", "make one: inat-ft split DATA")
        with path.open("rb") as raw:
            first = raw.readline().decode()
            if not first.startswith(_MARK):
                raise DataError(f"{path} is no manifest of inat-ft", "make one: inat-ft split DATA")
            header = json.loads(first.removeprefix(_MARK))
            start = raw.tell()
            fingerprint = hashlib.sha256()
            while block := raw.read(2**20):
                fingerprint.update(block)
            if fingerprint.hexdigest() != header["fingerprint"]:
                raise DataError(f"the manifest {path} was edited or damaged: its rows do not match its fingerprint")
            raw.seek(start)
            with io.TextIOWrapper(raw, encoding="utf-8", newline="") as text, _no_collection():
                reader = csv.reader(text)
                next(reader)
                columns = list(zip(*reader, strict=True))
        manifest = _manifest(path, root, header, columns)
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}", "name one that can be read") from error
    except (UnicodeDecodeError, csv.Error, ValueError, KeyError, TypeError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"the manifest {path} is damaged: {reason}", "make it again: inat-ft split DATA") from error
    for file in manifest.paths:
        if (".." in file and ".." in file.split("/")) or os.path.isabs(file) or "\0" in file:
            raise DataError(
                f"the manifest {path} names {file!r}, which lies outside the folder of the images",
                "use manifests that `inat-ft split` wrote, and only from people you trust",
            )
    return manifest


def _manifest(path: Path, root: Path | None, header: dict[str, Any], columns: list[tuple[str, ...]]) -> Manifest:
    if header["schema"] != _SCHEMA:
        raise DataError(f"{path} has schema {header['schema']}; this version reads {_SCHEMA}")
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
    """Raise TypeError or ValueError when the header has values that no manifest has."""
    classes, exclude, left_out = header["classes"], header.get("exclude", []), header["left_out"]
    texts = [header["root"], header.get("csv", ""), *exclude, *classes, *(text for left in left_out for text in left)]
    if not all(isinstance(each, list) for each in (classes, exclude, left_out)):
        raise TypeError("classes, exclude and left_out must be lists")
    if not all(isinstance(text, str) for text in texts) or not isinstance(header["seed"], int):
        raise TypeError("names must be text, and the seed a number")
    if len(set(classes)) < len(classes):
        raise ValueError("a class is listed twice")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new rows make Python look for cycles again and again; here there are none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def find_manifest(folder: Path = Path("splits")) -> Path:
    """The manifest written last in a folder. Raises UsageError when there is none."""
    found = sorted(folder.glob("*.csv"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        raise UsageError(f"there is no split in {folder}/ yet", "make one: inat-ft split DATA")
    return found[-1]
