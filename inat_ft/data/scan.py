"""Every image opened and decoded once, before anything is split: what is usable, and what it looks like."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.images import ImageProblem, damaged, decode
from inat_ft.data.overheard import Overheard, bare, overheard
from inat_ft.data.threads import one_thread_each

if TYPE_CHECKING:
    from torch import Tensor

THUMB = 32
"""Side of the thumbnails by which copies are recognised, in pixels."""

_SAMPLES = 4
"""Along each side of a cell of a thumbnail. With 3, one in seven copies at half the size is missed; with 4, one in 100."""
_CHUNK = 16
_MAX_BYTES = 2**30
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Opening a pipe would wait for ever."""


@dataclass(frozen=True)
class Looks:
    """What images look like, for telling copies: one row for each of N images.

    phashes: perceptual hash, uint64 `[N]`; thumbs: grey thumbnails, uint8 `[N, 32, 32]`; colours: mean red, green and
    blue, uint8 `[N, 3]`; ratios: width by height, float32 `[N]`.
    """

    phashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    ratios: NDArray[np.float32]

    @classmethod
    def blank(cls, count: int, side: int = THUMB) -> Looks:
        """Rows to be filled in."""
        return cls(
            np.zeros(count, np.uint64),
            np.zeros((count, side, side), np.uint8),
            np.zeros((count, 3), np.uint8),
            np.ones(count, np.float32),
        )

    def of(self, places: NDArray[np.int64]) -> Looks:
        """The rows of these images."""
        return Looks(self.phashes[places], self.thumbs[places], self.colours[places], self.ratios[places])

    def fill(self, places: Sequence[int], small: Sequence[Tensor]) -> None:
        """Fill in the rows of images of which there are small pictures.

        Many at once: each of them alone would make threads wait for each other.
        """
        import torch

        pictures = torch.stack(list(small)).numpy().astype(np.uint32)
        pictures = (pictures + _SAMPLES**2 // 2) // _SAMPLES**2
        self.colours[places] = (pictures.reshape(len(pictures), THUMB**2, 3).sum(1) + THUMB**2 // 2) // THUMB**2
        red, green, blue = np.moveaxis(pictures, 3, 0)
        grey = (299 * red + 587 * green + 114 * blue + 500) // 1000  # integers: the same anywhere
        self.thumbs[places] = grey
        self.phashes[places] = phash(grey)


def phash(grey: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Perceptual hashes uint64 `[N]` of pictures `[N, 32, 32]`: which of the 64 lowest frequencies exceed their median.

    The same bits as imagehash's `phash`, which takes one picture at a time: alone it would cost a twentieth of decoding.
    """
    from scipy.fft import dctn

    low = dctn(grey.astype(np.float64), axes=(1, 2))[:, :8, :8].reshape(len(grey), 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    hashes: NDArray[np.uint64] = bits.view(">u8")[:, 0].astype(np.uint64)
    return hashes


def small_picture(image: Tensor) -> Tensor:
    """An image uint8 `[3, H, W]` as int16 `[32, 32, 3]`: in each cell the sum of 16 samples on a grid.

    Averaging every pixel would cost a third of the decoding. By torch and not numpy, since it lets other threads run.
    """
    import torch

    pixels = image.permute(1, 2, 0)
    height, width, _ = pixels.shape
    rows, columns = _sampled(height)[0], _sampled(width)[1]
    heaps = pixels.index_select(0, rows).view(THUMB, _SAMPLES, 3 * width).sum(1, dtype=torch.int16)
    samples = heaps.view(THUMB, width, 3).index_select(1, columns).view(THUMB, _SAMPLES, 3 * THUMB)
    return samples.sum(1, dtype=torch.int16).view(THUMB, THUMB, 3)


@lru_cache(1024)
def _sampled(side: int) -> tuple[Tensor, Tensor]:
    """Where along a side of so many pixels samples are taken, int64 `[128]`: cell by cell, and first of cells first."""
    import torch

    places = (2 * torch.arange(_SAMPLES * THUMB) + 1) * side // (2 * _SAMPLES * THUMB)
    return places, places.view(THUMB, _SAMPLES).T.reshape(-1)


@dataclass(frozen=True)
class Scan:
    """What was found, file by file in the order given.

    hashes: SHA-256 in hex of the content, "" where unreadable; problems: why a file is unusable, as "kind: detail" or
    "kind", "" where it is usable.
    """

    hashes: list[str]
    problems: list[str]
    looks: Looks


def scan(
    root: Path,
    paths: Sequence[str],
    max_pixels: int,
    workers: int,
    near: bool,
    tick: Callable[[int, int], None],
) -> Scan:
    """Decode all files with `workers` threads. near: see what they look like, too."""
    count = len(paths)
    found = Scan([""] * count, [""] * count, Looks.blank(count if near else 0))
    suspects: list[int] = []

    def visit(part: range) -> None:
        small = {}
        for place in part:
            try:
                before = heard.size()
                data = _read(root / paths[place])
                found.hashes[place] = hashlib.sha256(data).hexdigest()
                image = decode(data, max_pixels)
                if heard.since(before):  # in this image, or in one that another thread decodes
                    suspects.append(place)
            except ImageProblem as problem:
                found.problems[place] = str(problem)
                continue
            if near:
                small[place] = small_picture(image)
                found.looks.ratios[place] = image.shape[2] / image.shape[1]
        if small:
            found.looks.fill(list(small), list(small.values()))

    with overheard() as heard, one_thread_each(), _silence():
        _run(visit, count, workers, tick)
        for place in suspects:
            found.problems[place] = _damage(root / paths[place], max_pixels, heard)
    return found


def _damage(file: Path, max_pixels: int, heard: Overheard) -> str:
    """What is wrong with an image that can be decoded, when nothing else is; "" for nothing.

    What is heard of a bare JPEG is damage: a picture whose data break off or lose step.
    """
    try:
        data = bare(_read(file))
        before = heard.size()
        decode(data, max_pixels)
    except ImageProblem as problem:
        return str(problem)
    what = heard.since(before)
    return str(damaged(what)) if what and data.startswith(b"\xff\xd8") else ""


def _run(visit: Callable[[range], None], count: int, workers: int, tick: Callable[[int, int], None]) -> None:
    """Visit `count` places with so many threads, a chunk at a time."""
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
        waiting: deque[tuple[int, Future[None]]] = deque()
        for start in range(0, count, _CHUNK):
            part = range(start, min(start + _CHUNK, count))
            waiting.append((part.stop, pool.submit(visit, part)))
            if len(waiting) > 2 * workers:  # no more in flight than keeps the threads busy
                _wait(waiting, tick, count)
        while waiting:
            _wait(waiting, tick, count)


def _read(file: Path) -> bytes:
    try:
        handle = os.open(file, os.O_RDONLY | _NO_WAITING)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ImageProblem("no regular file")
            if status.st_size > _MAX_BYTES:
                raise ImageProblem(f"more than {_MAX_BYTES // 2**20:,} MiB")
            parts = []
            while part := os.read(handle, status.st_size + 1):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(handle)
    except OSError as error:
        raise ImageProblem(f"cannot be read: {error.strerror}") from None


@contextmanager
def _silence() -> Iterator[None]:
    """Pillow warns of oddities in metadata, without the file's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _wait(waiting: deque[tuple[int, Future[None]]], tick: Callable[[int, int], None], count: int) -> None:
    done, future = waiting.popleft()
    future.result()
    tick(done, count)
