"""Every image opened and decoded once, before anything is split: what is usable, and what it looks like."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.images import ImageProblem, decode

if TYPE_CHECKING:
    from torch import Tensor

THUMB = 32
"""Side of the grey thumbnails by which copies are recognised, in pixels."""

_ENOUGH = 128


@dataclass(frozen=True)
class Scan:
    """What was found, file by file in the order given.

    hashes: SHA-256 in hex of the content, "" where unreadable; problems: why a file is unusable, "" where it is usable;
    phashes: perceptual hash, uint64 `[N]`; thumbs: grey thumbnails, uint8 `[N, 32, 32]`; ratios: width by height `[N]`.
    """

    hashes: list[str]
    problems: list[str]
    phashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]
    ratios: NDArray[np.float32]


def scan(
    root: Path,
    paths: Sequence[str],
    max_pixels: int,
    workers: int,
    near: bool,
    tick: Callable[[int, int], None],
) -> Scan:
    """Decode all files with `workers` threads. near: compute what near copies are recognised by, too."""
    count = len(paths)
    found = Scan(
        [""] * count,
        [""] * count,
        np.zeros(count, np.uint64),
        np.zeros((count, THUMB, THUMB), np.uint8),
        np.ones(count, np.float32),
    )

    def look(place: int) -> None:
        try:
            data = (root / paths[place]).read_bytes()
            found.hashes[place] = hashlib.sha256(data).hexdigest()
            image = decode(data, max_pixels)
        except OSError as error:
            found.problems[place] = f"cannot be read: {error.strerror}"
        except ImageProblem as problem:
            found.problems[place] = str(problem)
        else:
            if near:
                found.thumbs[place] = thumbnail(image)
                found.phashes[place] = perceptual_hash(found.thumbs[place])
                found.ratios[place] = image.shape[2] / image.shape[1]

    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
        waiting: deque[Future[None]] = deque()
        for place in range(count):
            waiting.append(pool.submit(look, place))
            if len(waiting) > 4 * workers:  # no more in flight than keeps the threads busy
                waiting.popleft().result()
                tick(place + 1 - len(waiting), count)
        while waiting:
            waiting.popleft().result()
            tick(count - len(waiting), count)
    return found


def thumbnail(image: Tensor) -> NDArray[np.uint8]:
    """A grey thumbnail, uint8 `[32, 32]`, of an image uint8 `[3, H, W]`.

    Large images are thinned out first: averaging every pixel would cost a third of the decoding.
    """
    from PIL import Image

    step = max(1, min(image.shape[1:]) // _ENOUGH)
    thin = image[:, ::step, ::step].numpy().astype(np.uint16)
    grey = ((thin[0] + 2 * thin[1] + thin[2]) >> 2).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX))


def perceptual_hash(thumb: NDArray[np.uint8]) -> int:
    """The 64 bits of imagehash's pHash: which low frequencies of the thumbnail are above their median."""
    import imagehash
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(thumb)).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
