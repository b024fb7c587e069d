"""Write the packed cache from images that are decoded anyway, so that no training decodes them again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from inat_ft.cache.array_store import Store, Writer
from inat_ft.cache.packed_images import packed_store
from inat_ft.errors import DataError, UsageError, is_disk_full
from inat_ft.images.resizing import Resizing, to_square
from inat_ft.paths import cache_folder
from inat_ft.progress import Log
from inat_ft.text import format_bytes, pluralize

if TYPE_CHECKING:
    from torch import Tensor

_FORM = re.compile(r"(?P<size>\d{1,4})(:(?P<mode>squash|crop|pad))?(:(?P<interpolation>bilinear|bicubic))?")
_MIN_SIZE, _MAX_SIZE = 16, 1024
_QUEUED_BYTES = 2**26
"""Pixels that wait for the disk before decoding does."""


class _Form(NamedTuple):
    """A size and a way of resizing, as in `--pack 224:crop`."""

    text: str
    size: int
    resizing: Resizing


def _parse(text: str) -> _Form:
    found = _FORM.fullmatch(text)
    if not found or not _MIN_SIZE <= int(found["size"]) <= _MAX_SIZE:
        raise UsageError(
            f"--pack {text} is not a size of {_MIN_SIZE} to {_MAX_SIZE} pixels",
            "write the size and, if train gets them, --resize and the interpolation: 224, 224:crop, 224:pad:bicubic",
        )
    named = {name: found[name] for name in ("mode", "interpolation") if found[name]}
    return _Form(text, int(found["size"]), Resizing(**named))  # type: ignore[arg-type]  # matched by the pattern


class Packing:
    """Adds decoded images to the packed caches of some sizes. It is a context, in which the caches are locked.

    When a cache cannot be written, for example because the disk is full, packing ends and the scan goes on; rows that were
    written before remain valid. count: number of images that may be added.
    """

    def __init__(self, sizes: Sequence[str], cache_dir: Path | None, count: int, log: Log, warn: Log) -> None:
        forms = {(form.size, form.resizing): form for form in map(_parse, sizes)}
        self._log, self._warn, self._count = log, warn, count
        self._caches = [
            _Cache(form, packed_store(cache_folder(cache_dir), form.size, form.resizing)) for form in forms.values()
        ]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for cache in self._caches:
                cache.open(opened, self._count)
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        for cache in self._caches:
            cache.close()
        self._open.close()
        for cache in self._caches if error is None else ():
            (self._warn if cache.problem else self._log)(cache.summary())

    def add(self, sha256: str, image: Tensor) -> None:
        """Add an upright image, uint8 `[3, H, W]`. Called by several threads."""
        for cache in self._caches:
            cache.add(bytes.fromhex(sha256), image)


class _Cache:
    """One packed cache. A thread writes its rows."""

    def __init__(self, form: _Form, store: Store) -> None:
        self.form, self.store, self.problem = form, store, ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pack")
        self._queue = BoundedSemaphore(max(1, _QUEUED_BYTES // store.row_bytes))
        self._writer: Writer | None = None
        self._known: set[bytes] = set()
        self._seen: set[bytes] = set()

    def open(self, held: ExitStack, count: int) -> None:
        """Lock the cache. Raises DataError if the disk has no space for `count` images."""
        self.store.require_space(max(0, count - len(self.store.digests())))
        self._writer = held.enter_context(self.store.appending())
        self._known = set(self.store.digests())

    def add(self, digest: bytes, image: Tensor) -> None:
        self._seen.add(digest)
        if digest in self._known or self.problem:
            return
        row = to_square(image, self.form.size, self.form.resizing).permute(1, 2, 0).contiguous().numpy()
        self._queue.acquire()
        self._thread.submit(self._write, digest, row)

    def _write(self, digest: bytes, row: Any) -> None:
        assert self._writer is not None
        try:
            if digest not in self._known and not self.problem:
                self._writer.digests.append(digest)
                self._writer.write(row[None])
                self._known.add(digest)
        except OSError as error:
            self._fail(error)
        finally:
            self._queue.release()

    def _fail(self, error: OSError) -> None:
        self.problem = "the disk is full" if is_disk_full(error) else f"{error.strerror or error}"

    def close(self) -> None:
        """Wait for the thread, and make the rows valid."""
        self._thread.shutdown()
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            self._fail(error)

    def summary(self) -> str:
        """Return what was done, for the user."""
        where, size = self.store.folder, self.form.size
        valid = 0
        with suppress(DataError):
            valid = len(self._seen & set(self.store.digests()))
        done = f"packed: {pluralize(valid, 'image')} at {size} x {size} pixels, {format_bytes(valid * self.store.row_bytes)}"
        if not self.problem:
            return f"{done}, in {where}"
        return f"packing {self.form.text} stopped, because {self.problem}: {where}; {done}"
