"""Decode every image once, before the split: hash its content, find unusable files, compute signatures."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inat_ft.errors import DataError
from inat_ft.images.decode import decode, read_file
from inat_ft.images.opening import ImageProblem
from inat_ft.images.signatures import ImageSignatures, thumbnail
from inat_ft.progress import ProgressFn
from inat_ft.threads import one_thread_each

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 16
"""Images per task of a thread."""
_BATCH = 128
"""Thumbnails per batch of signatures."""


@dataclass(frozen=True)
class Scan:
    """Results for each of N files, in the order given.

    hashes: SHA-256 of the content in hex, "" where the file cannot be read; problems: why a file is
    not usable, None where it is.
    """

    hashes: list[str]
    problems: list[ImageProblem | None]
    signatures: ImageSignatures


def scan(
    root: Path,
    paths: Sequence[str],
    max_pixels: int,
    workers: int,
    near: bool,
    progress: ProgressFn,
) -> Scan:
    """Decode all files with `workers` threads. near: compute signatures too, to find near duplicates.

    tick(done, total) reports progress. Raises DataError when memory is too small to decode an image.
    """
    count = len(paths)
    found = Scan([""] * count, [None] * count, ImageSignatures.blank(count if near else 0))

    def visit(part: range) -> dict[int, Tensor]:
        thumbnails = {}
        for place in part:
            try:
                data = read_file(root / paths[place])
                found.hashes[place] = hashlib.sha256(data).hexdigest()
                image = decode(data, max_pixels)
            except ImageProblem as problem:
                found.problems[place] = problem
                continue
            except MemoryError:
                hint = "decode fewer images at a time with --workers 1, or leave it out with --max-pixels"
                raise DataError(f"there is not enough memory to decode {root / paths[place]}", hint) from None
            if near:
                thumbnails[place] = thumbnail(image)
                found.signatures.ratios[place] = image.shape[2] / image.shape[1]
            del image  # its memory is reused for the next image
        return thumbnails

    with one_thread_each(), warnings.catch_warnings(), closing(_run(visit, count, workers)) as visits:
        warnings.simplefilter("ignore")  # Pillow warns about metadata without naming the file
        batch: dict[int, Tensor] = {}
        for done, thumbnails in visits:
            batch |= thumbnails
            if batch and (len(batch) >= _BATCH or done == count):
                found.signatures.update(list(batch), list(batch.values()))
                batch.clear()
            progress(done, count)
    return found


def _run(
    visit: Callable[[range], dict[int, Tensor]], count: int, workers: int
) -> Generator[tuple[int, dict[int, Tensor]], None, None]:
    """Visit `count` places with `workers` threads, a chunk at a time; yield how many are done, and their results."""
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
        waiting: deque[tuple[int, Future[dict[int, Tensor]]]] = deque()
        for start in range(0, count, _CHUNK):
            part = range(start, min(start + _CHUNK, count))
            waiting.append((part.stop, pool.submit(visit, part)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
