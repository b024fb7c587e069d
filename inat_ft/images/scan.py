"""Decode every image once, before the split: hash its content, find unusable files, prepare the search for near copies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from inat_ft.errors import DataError
from inat_ft.images.boxes import image_hash, split_path
from inat_ft.images.decode import ImageProblem, decode, read_file
from inat_ft.images.resizing import crop
from inat_ft.progress import ProgressFn
from inat_ft.registry import FEATURES, get
from inat_ft.threads import torch_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Keep = Callable[[str, Tensor], object] | None

_CHUNK = 16
"""Images per task of a thread."""
_BATCH = 128
"""Thumbnails per update of the search."""


class NearDuplicates(Protocol):
    """What the feature `near-duplicates` does, created with the number of images."""

    def shrink(self, place: int, image: Tensor) -> Tensor: ...  # called by several threads

    def update(self, thumbnails: dict[int, Tensor]) -> None: ...

    def pairs(self, places: NDArray[np.int64]) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Scan:
    """Results for each of N files, in the order given.

    hashes: SHA-256 of the content in hex, "" where the file cannot be read; problems: why a file is
    not usable, None where it is; near: finds near duplicates, None if they are not searched for.
    """

    hashes: list[str]
    problems: list[ImageProblem | None]
    near: NearDuplicates | None = None


def scan(
    root: Path, paths: Sequence[str], max_pixels: int, workers: int, near: bool, progress: ProgressFn, keep: Keep = None
) -> Scan:
    """Decode all files with `workers` threads. near: prepare the search for near duplicates too.

    keep: called by the threads with the hash of each image and its pixels `[3, H, W]`.

    Raises DataError when memory is too small to decode an image.
    """
    count = len(paths)
    found = Scan([""] * count, [None] * count, get(FEATURES, "near-duplicates").load()(count) if near else None)

    def visit(part: range) -> dict[int, Tensor]:
        thumbnails = {}
        for place in part:
            try:
                file, box = split_path(root / paths[place])
                data = read_file(file)
                found.hashes[place] = image_hash(data, box)
                image = crop(decode(data, max_pixels), box)
            except ImageProblem as problem:
                found.problems[place] = problem
                continue
            except MemoryError:
                hint = "decode fewer images at a time with --workers 1, or leave it out with --max-pixels"
                raise DataError(f"there is not enough memory to decode {root / paths[place]}", hint) from None
            if found.near:
                thumbnails[place] = found.near.shrink(place, image)
            if keep:
                keep(found.hashes[place], image)
            del image  # its memory is reused for the next image
        return thumbnails

    parts = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    pool = ThreadPoolExecutor(workers, thread_name_prefix="scan")
    batch: dict[int, Tensor] = {}
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about metadata without naming the file
        try:
            for part, thumbnails in zip(parts, pool.map(visit, parts), strict=True):
                batch |= thumbnails
                if found.near and batch and (len(batch) >= _BATCH or part.stop == count):
                    found.near.update(batch)
                    batch.clear()
                progress(part.stop, count)
        finally:
            pool.shutdown(cancel_futures=True)
    return found
