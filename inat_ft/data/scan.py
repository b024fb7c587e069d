"""Every image opened and decoded once, before anything is split: what is usable, and what it looks like."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.images import ImageProblem, damaged, decode
from inat_ft.data.overheard import Overheard, bare, of_padding, overheard
from inat_ft.data.threads import one_thread_each

if TYPE_CHECKING:
    from torch import Tensor

THUMB = 32
"""Side of the thumbnails by which copies are recognised, in pixels."""

_SAMPLES = 4
"""Along each side of a cell of a thumbnail. With 3, one in seven copies at half the size is missed; with 4, one in 100."""
_CHUNK = 16
_FILL = 128
"""Images that threads take at a time, and of which thumbnails are made at a time."""
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

    def fill(self, places: Sequence[int], samples: Sequence[Tensor]) -> None:
        """Fill in the rows of images, each of which has been sampled.

        Many at once: each of them alone would take five times as long, and other threads wait for it.
        """
        import torch

        sums = torch.stack(list(samples)).view(len(samples), _SAMPLES**2, -1).sum(1, dtype=torch.int16).numpy()
        means = (sums.reshape(-1, THUMB**2, 3) + np.int16(_SAMPLES**2 // 2)) // np.int16(_SAMPLES**2)
        channels = [np.ascontiguousarray(means[:, :, channel]).astype(np.int32) for channel in range(3)]
        for number, channel in enumerate(channels):
            self.colours[places, number] = (channel.sum(1) + THUMB**2 // 2) // THUMB**2
        red, green, blue = channels
        grey = (299 * red + 587 * green + 114 * blue + 500) // 1000  # integers: the same anywhere
        grey = grey.reshape(-1, THUMB, THUMB)
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


def sampled(image: Tensor) -> Tensor:
    """The pixels of an image uint8 `[3, H, W]` that its thumbnail is made of: uint8 `[16 * 32 * 32, 3]`.

    In each of 32 x 32 cells those on a grid of 4 x 4, the first of all cells first. Averaging every pixel would cost a third
    of the decoding. By torch and not numpy, since it lets other threads run.
    """
    import torch

    _, height, width = image.shape
    rows = _along(height).view(_SAMPLES, 1, THUMB, 1)
    columns = _along(width).view(1, _SAMPLES, 1, THUMB)
    numbers = torch.add(columns, rows, alpha=width).view(-1)
    return image.permute(1, 2, 0).reshape(-1, 3).index_select(0, numbers)


@lru_cache(1024)
def _along(side: int) -> Tensor:
    """Where along a side of so many pixels samples are taken, int64 `[4 * 32]`: first of all cells first."""
    import torch

    places = (2 * torch.arange(_SAMPLES * THUMB) + 1) * side // (2 * _SAMPLES * THUMB)
    return places.view(THUMB, _SAMPLES).T.reshape(-1)


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

    def visit(part: range) -> dict[int, Tensor]:
        samples, before = {}, heard.size()
        for place in part:
            try:
                data = _read(root / paths[place])
                found.hashes[place] = hashlib.sha256(data).hexdigest()
                image = decode(data, max_pixels)
                if heard.since(before):  # in this image, or in one that another thread decodes
                    suspects.append(place)
                    before = heard.size()
            except ImageProblem as problem:
                found.problems[place] = str(problem)
                continue
            if near:
                samples[place] = sampled(image)
                found.looks.ratios[place] = image.shape[2] / image.shape[1]
            del image  # its memory holds the next one
        return samples

    with overheard() as heard, one_thread_each(), _silence(), closing(_run(visit, count, workers)) as visits:
        seen: dict[int, Tensor] = {}
        for done, samples in visits:
            seen |= samples
            if seen and (len(seen) >= _FILL or done == count):
                found.looks.fill(list(seen), list(seen.values()))
                seen.clear()
            tick(done, count)
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
    return str(damaged(what)) if what and data.startswith(b"\xff\xd8") and not of_padding(what, data) else ""


def _run(
    visit: Callable[[range], dict[int, Tensor]], count: int, workers: int
) -> Generator[tuple[int, dict[int, Tensor]], None, None]:
    """Visit `count` places with so many threads, a chunk at a time; yields how many are done, and what they gave."""
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
        waiting: deque[tuple[int, Future[dict[int, Tensor]]]] = deque()
        for start in range(0, count, _CHUNK):
            part = range(start, min(start + _CHUNK, count))
            waiting.append((part.stop, pool.submit(visit, part)))
            if len(waiting) > 2 * workers:  # no more in flight than keeps the threads busy
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _read(file: Path) -> bytes:
    try:
        handle = os.open(file, os.O_RDONLY | _NO_WAITING)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ImageProblem("no regular file")
            if status.st_size > _MAX_BYTES:
                raise ImageProblem(f"more than {_MAX_BYTES // 2**20:,} MiB")
            parts, missing = [], status.st_size
            while missing > 0 and (part := os.read(handle, missing)):
                parts.append(part)
                missing -= len(part)
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
