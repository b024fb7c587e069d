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
from inat_ft.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

THUMB = 32
"""Side of the thumbnails by which copies are recognised, in pixels."""

_PARTS = 8
"""Along each side of a picture, of which the colours are kept."""
_ROWS = 128
"""Of an image that a thumbnail is made of: all of them would take four times as long, a tenth of the decoding."""
_LOW_CONTRAST = 32.0
"""Standard deviation of a thumbnail below which its image is looked at in full."""
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
    blue of parts of the picture, uint8 `[N, 8, 8, 3]`; ratios: width by height, float32 `[N]`.
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
            np.zeros((count, _PARTS, _PARTS, 3), np.uint8),
            np.ones(count, np.float32),
        )

    def of(self, places: NDArray[np.int64]) -> Looks:
        """The rows of these images."""
        return Looks(self.phashes[places], self.thumbs[places], self.colours[places], self.ratios[places])

    def fill(self, places: Sequence[int], small: Sequence[Tensor]) -> None:
        """Fill in the rows of images of which there are small pictures.

        Many at once: each of them alone would take five times as long, and other threads wait for it.
        """
        import torch

        pictures, side = torch.stack(list(small)), THUMB // _PARTS
        bands = pictures.view(-1, 3, _PARTS, side, THUMB).sum(3, dtype=torch.int16)
        parts = bands.view(-1, 3, _PARTS, _PARTS, side).sum(4, dtype=torch.int16)
        self.colours[places] = ((parts + side**2 // 2) // side**2).permute(0, 2, 3, 1).numpy()
        red, green, blue = np.moveaxis(pictures.numpy().astype(np.uint16), 1, 0)
        grey = ((77 * red + 150 * green + 29 * blue + 128) // 256).astype(np.uint8)  # integers: the same anywhere
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
    """An image uint8 `[3, H, W]` as uint8 `[3, 32, 32]`, resized bilinearly with antialiasing.

    Of some rows only, unless little contrast remains: then what the other rows would change is no trifle, as with grass.
    """
    if (height := image.shape[1]) > _ROWS:
        some = _shrunk(image.permute(1, 2, 0).index_select(0, _rows(height)).permute(2, 0, 1))
        green = some[1].numpy().ravel().astype(np.float32)
        if green @ green / green.size - (green.sum() / green.size) ** 2 >= _LOW_CONTRAST**2:
            return some
    return _shrunk(image)


def _shrunk(image: Tensor) -> Tensor:
    from torch.nn.functional import interpolate

    return interpolate(image[None], (THUMB, THUMB), mode="bilinear", antialias=True)[0]


@lru_cache(1024)
def _rows(height: int) -> Tensor:
    """Which rows of an image are looked at, int64 `[128]`."""
    import torch

    return (2 * torch.arange(_ROWS) + 1) * height // (2 * _ROWS)


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
        small, before = {}, heard.size()
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
            except MemoryError:
                hint = "decode fewer at once with --workers 1, or leave it out with --max-pixels"
                raise DataError(f"there is not enough memory to decode {root / paths[place]}", hint) from None
            if near:
                small[place] = small_picture(image)
                found.looks.ratios[place] = image.shape[2] / image.shape[1]
            del image  # its memory holds the next one
        return small

    with overheard() as heard, one_thread_each(), _silence(), closing(_run(visit, count, workers)) as visits:
        seen: dict[int, Tensor] = {}
        for done, small in visits:
            seen |= small
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
