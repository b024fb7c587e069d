"""Arrays of equal size on disk, each computed once and found by the hash of its image.

A store is a folder: `rows.bin` contains the rows, `index.bin` the SHA-256 of the image of each row. A row is valid when its
index entry is written, which happens after the row is on disk, every 512 MiB or 5 seconds: if a process is killed, the next
one resumes there. One process writes at a time; others wait, then find the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError, is_disk_full
from inat_ft.locks import FileLock
from inat_ft.paths import free_space
from inat_ft.progress import ProgressFn
from inat_ft.records import write_text
from inat_ft.text import format_bytes

_DIGEST = 32
_READ_WRITE = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # Windows would change line breaks
_QUEUE = 2
_FLUSH_BYTES = 2**29
_FLUSH_SECONDS = 5.0
_ELSEWHERE = "name another folder with --cache-dir"
_ADVICE = f"free some space, list and clear caches with `inat-ft cache`, or {_ELSEWHERE}"

Make = Callable[[Sequence[int]], Iterator[NDArray[Any]]]
"""Given positions of missing rows, yield these rows in order, in blocks of one or more."""


@dataclass(frozen=True)
class Store:
    """A folder of rows that are computed in the same way. row_shape and dtype: of one row."""

    folder: Path
    description: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape)) * self.dtype.itemsize

    def missing(self, hashes: Sequence[str]) -> list[int]:
        """Return positions in `hashes` of images without a row; for equal images, the first."""
        known = set(self.digests())
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
        if not (missing := self.missing(hashes)):
            return 0
        self.require_space(len(missing))
        with self.appending() as writer:
            missing = self.missing(hashes)  # another process may have added some
            writer.digests += [bytes.fromhex(hashes[position]) for position in missing]
            if missing:
                self._write_blocks(writer, make(missing), progress)
        return len(missing)

    def require_space(self, count: int) -> None:
        """Raise DataError if the disk has no space for this many rows."""
        need, free = count * self.row_bytes, free_space(self.folder)
        if need > free:
            raise DataError(
                f"the cache needs {format_bytes(need)} and {self.folder} has {format_bytes(free)} left", _ADVICE
            )

    @contextmanager
    def appending(self) -> Iterator[Writer]:
        """Lock the store and return a writer of further rows. Raises DataError when the disk is full."""
        with ExitStack() as held, _folder_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(self.folder / "lock"))
            write_text(self.folder / "key.json", self.description)
            rows, index = (os.open(self.folder / name, _READ_WRITE, 0o666) for name in ("rows.bin", "index.bin"))
            held.callback(os.close, rows)
            held.callback(os.close, index)
            done = len(self.digests())
            os.ftruncate(rows, done * self.row_bytes)  # remove partial rows of a killed process
            os.ftruncate(index, done * _DIGEST)
            os.lseek(rows, 0, os.SEEK_END)
            yield Writer(rows, index, done)

    def _write_blocks(self, writer: Writer, blocks: Iterator[NDArray[Any]], progress: ProgressFn) -> None:
        """Write blocks in a thread, while the next ones are computed."""
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="store") as thread:
            try:
                for block in blocks:
                    waiting.append(thread.submit(writer.write, np.ascontiguousarray(block, self.dtype)))
                    if len(waiting) > _QUEUE:
                        waiting.popleft().result()
                    progress(writer.written, len(writer.digests))
                for each in waiting:
                    each.result()
            finally:
                thread.submit(writer.flush).result()
        progress(writer.written, len(writer.digests))

    def read(self, hashes: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return all rows, memory-mapped and read-only `[M, *row_shape]`, and the row number of each hash `[N]`.

        Raises DataError when a hash has no row, or the store is cleared at the same time.
        """
        try:
            with (self.folder / "rows.bin").open("rb") as opened:
                index = {digest: row for row, digest in enumerate(self.digests())}
                positions = np.fromiter((index[bytes.fromhex(name)] for name in hashes), np.int64, len(hashes))
                rows = np.memmap(opened, self.dtype, "r", shape=(len(index), *self.row_shape))
                if os.path.samestat(os.fstat(opened.fileno()), os.stat(self.folder / "rows.bin")):
                    return rows, positions  # otherwise the index belongs to newer rows
        except (FileNotFoundError, KeyError):
            pass
        raise DataError(f"the cache {self.folder} was cleared while it was being read", "run the same command again")

    def digests(self) -> list[bytes]:
        """Return the digests of all valid rows."""
        try:
            raw = (self.folder / "index.bin").read_bytes()
            stored = (self.folder / "rows.bin").stat().st_size // self.row_bytes
        except (FileNotFoundError, NotADirectoryError):
            return []
        count = min(len(raw) // _DIGEST, stored)
        return [raw[start : start + _DIGEST] for start in range(0, count * _DIGEST, _DIGEST)]


def file_name(key: object) -> str:
    """Return the name of a file or folder in the cache for what determines its content."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def open_store(cache: Path, kind: str, key: dict[str, Any], row_shape: tuple[int, ...], dtype: str) -> Store:
    """Return the store for a key in the cache folder; it is created when rows are added.

    kind: its parent folder. key: everything that determines a row, except its image.
    """
    full = {"key": key, "row_shape": row_shape, "dtype": np.dtype(dtype).str}
    description = json.dumps(full, indent=1, sort_keys=True) + "\n"
    return Store(cache / kind / file_name(full), description, row_shape, np.dtype(dtype))


@dataclass
class Writer:
    """Appends rows to a store of `start` rows; they become valid when they are on disk. digests: those of the images."""

    rows: int
    index: int
    start: int
    digests: list[bytes] = field(default_factory=list)
    written: int = 0
    has_failed: bool = False
    _valid: int = 0
    _bytes: int = 0
    _flushed: float = field(default_factory=time.monotonic)

    def write(self, block: NDArray[Any]) -> None:
        """Append rows, unless an earlier write failed."""
        if self.has_failed:
            return
        self.has_failed = True
        _write(self.rows, block.data.cast("B"))
        self.has_failed = False
        self.written += len(block)
        self._bytes += block.nbytes
        if self._bytes >= _FLUSH_BYTES or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make the rows that were written valid."""
        os.fsync(self.rows)
        os.lseek(self.index, (self.start + self._valid) * _DIGEST, os.SEEK_SET)
        _write(self.index, memoryview(b"".join(self.digests[self._valid : self.written])))
        os.fsync(self.index)
        self._valid, self._bytes, self._flushed = self.written, 0, time.monotonic()


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
