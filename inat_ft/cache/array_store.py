"""Arrays of equal size on disk, each computed once and found by the hash of its image.

A store is a folder: `rows.bin` contains the rows, `index.bin` the SHA-256 of the image of each row. A row is valid when its
index entry is written, which happens after the row is on disk: if a process is killed, the next one resumes there. One
process writes at a time; others wait, then find the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError, is_disk_full
from inat_ft.locks import FileLock
from inat_ft.progress import ProgressFn
from inat_ft.records import write_text
from inat_ft.text import format_bytes

_DIGEST = 32
_ELSEWHERE = "name another folder with --cache-dir, or use --cache none"
_ADVICE = f"free some space, list and clear with `inat-ft cache`, {_ELSEWHERE}"

Make = Callable[[Sequence[int]], Iterator[NDArray[Any]]]
"""Given positions of missing rows, yield these rows in order, in blocks of one or more."""


@dataclass(frozen=True)
class Store:
    """A folder of rows that are computed in the same way.

    key: everything that determines a row, except its image; row_shape and dtype: of one row.
    """

    folder: Path
    key: dict[str, Any]
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape)) * self.dtype.itemsize

    def missing(self, hashes: Sequence[str]) -> list[int]:
        """Return positions in `hashes` of images without a row; for equal images, the first."""
        known = set(self._index())
        found = []
        for position, name in enumerate(hashes):
            digest = bytes.fromhex(name)
            if digest not in known:
                known.add(digest)
                found.append(position)
        return found

    def ensure(self, hashes: Sequence[str], make: Make, progress: ProgressFn) -> int:
        """Compute the missing rows, and return how many there were.

        progress(done, total) reports progress. Raises DataError when the disk is full or too small.
        """
        if not self.missing(hashes):
            return 0
        with ExitStack() as held:
            with _folder_named(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.folder / "lock"))
            missing = self.missing(hashes)  # another process may have added some
            if missing:
                self._make(missing, hashes, make, progress)
        return len(missing)

    def _make(self, missing: list[int], hashes: Sequence[str], make: Make, progress: ProgressFn) -> None:
        need, free = len(missing) * self.row_bytes, shutil.disk_usage(self.folder).free
        if need > free:
            raise DataError(
                f"the cache needs {format_bytes(need)} and {self.folder} has {format_bytes(free)} left", _ADVICE
            )
        with _folder_named(self.folder):
            write_text(self.folder / "key.json", json.dumps(self._description(), indent=1, sort_keys=True) + "\n")
            rows = os.open(self.folder / "rows.bin", os.O_RDWR | os.O_CREAT, 0o666)
            index = os.open(self.folder / "index.bin", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                done = len(self._index())
                os.ftruncate(rows, done * self.row_bytes)  # remove partial rows of a killed process
                os.ftruncate(index, done * _DIGEST)
                os.lseek(rows, 0, os.SEEK_END)
                os.lseek(index, 0, os.SEEK_END)
                made = 0
                for block in make(missing):
                    _write(rows, np.ascontiguousarray(block, self.dtype).data.cast("B"))
                    os.fsync(rows)
                    digests = (bytes.fromhex(hashes[position]) for position in missing[made : made + len(block)])
                    _write(index, memoryview(b"".join(digests)))
                    made += len(block)
                    progress(made, len(missing))
                os.fsync(index)
            finally:
                os.close(rows)
                os.close(index)

    def read(self, hashes: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return all rows, memory-mapped and read-only `[M, *row_shape]`, and the row number of each hash `[N]`.

        Raises DataError when a hash has no row, or the store is cleared at the same time.
        """
        try:
            with (self.folder / "rows.bin").open("rb") as opened:
                index = {digest: row for row, digest in enumerate(self._index())}
                positions = np.fromiter((index[bytes.fromhex(name)] for name in hashes), np.int64, len(hashes))
                rows = np.memmap(opened, self.dtype, "r", shape=(len(index), *self.row_shape))
                if os.path.samestat(os.fstat(opened.fileno()), os.stat(self.folder / "rows.bin")):
                    return rows, positions  # otherwise the index belongs to newer rows
        except (FileNotFoundError, KeyError):
            pass
        raise DataError(f"the cache {self.folder} was cleared while it was being read", "run the same command again")

    def _index(self) -> list[bytes]:
        """Return the digests of all valid rows."""
        try:
            raw = (self.folder / "index.bin").read_bytes()
            stored = (self.folder / "rows.bin").stat().st_size // self.row_bytes
        except (FileNotFoundError, NotADirectoryError):
            return []
        count = min(len(raw) // _DIGEST, stored)
        return [raw[start : start + _DIGEST] for start in range(0, count * _DIGEST, _DIGEST)]

    def _description(self) -> dict[str, Any]:
        return {"key": self.key, "row_shape": self.row_shape, "dtype": self.dtype.str}


def open_store(cache: Path, kind: str, key: dict[str, Any], row_shape: tuple[int, ...], dtype: str) -> Store:
    """Return the store for a key in the cache folder; it is created when rows are added. kind: its parent folder."""
    full = {"key": key, "row_shape": row_shape, "dtype": np.dtype(dtype).str}
    name = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()[:24]
    return Store(cache / kind / name, key, row_shape, np.dtype(dtype))


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


@contextmanager
def _folder_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DataError(f"the disk is full: the cache cannot be written to {folder}", _ADVICE) from error
        raise DataError(f"cannot write the cache to {folder}: {error.strerror or error}", _ELSEWHERE) from error


@dataclass(frozen=True)
class StoreSize:
    """Disk usage of a store; size in bytes."""

    folder: Path
    kind: str
    rows: int
    size: int
    key: dict[str, Any]


def list_stores(cache: Path) -> list[StoreSize]:
    """Return the stores in a cache folder, largest first."""
    found = []
    for description in cache.glob("*/*/key.json"):
        folder = description.parent
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        index = folder / "index.bin"
        rows = index.stat().st_size // _DIGEST if index.exists() else 0
        found.append(StoreSize(folder, folder.parent.name, rows, size, _read_key(description)))
    return sorted(found, key=lambda store: -store.size)


def _read_key(description: Path) -> dict[str, Any]:
    """Return the key of a store, {} if its file is damaged: the store can still be listed and cleared."""
    try:
        key = json.loads(description.read_bytes())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return key if isinstance(key, dict) else {}


def clear_store(store: StoreSize) -> None:
    """Remove a store when no process writes to it. The lock file remains, since others may wait for it."""
    with FileLock(store.folder / "lock"):
        (store.folder / "index.bin").unlink(missing_ok=True)  # first, so that no row is valid
        (store.folder / "rows.bin").unlink(missing_ok=True)
        (store.folder / "key.json").unlink(missing_ok=True)
