"""Every image opened and decoded once, before anything is split: its content, whether it is usable, what it looks like."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from inat_ft.errors import DataError
from inat_ft.images.decode import decode, read_file
from inat_ft.images.libjpeg_warnings import (
    DecoderWarnings,
    capture_decoder_warnings,
    is_trailing_padding,
    strip_metadata,
)
from inat_ft.images.opening import ImageProblem, TooLarge, damaged
from inat_ft.images.signatures import ImageSignatures, thumbnail
from inat_ft.progress import ProgressFn
from inat_ft.threads import one_thread_each

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 16
_FILL = 128
"""Images that threads take at a time, and of which thumbnails are made at a time."""


@dataclass(frozen=True)
class Scan:
    """What was found, file by file in the order given.

    hashes: SHA-256 in hex of the content, "" where unreadable; problems: why a file is unusable, as "kind: detail" or
    "kind", "" where it is usable; too_large: the places of images with more pixels than the limit.
    """

    hashes: list[str]
    problems: list[str]
    signatures: ImageSignatures
    too_large: set[int] = field(default_factory=set)

    def note(self, place: int, problem: ImageProblem) -> None:
        """Note why the file at a place is unusable."""
        self.problems[place] = str(problem)
        if isinstance(problem, TooLarge):
            self.too_large.add(place)


def scan(
    root: Path,
    paths: Sequence[str],
    max_pixels: int,
    workers: int,
    near: bool,
    progress: ProgressFn,
) -> Scan:
    """Decode all files with `workers` threads. near: see what they look like, too."""
    count = len(paths)
    found = Scan([""] * count, [""] * count, ImageSignatures.blank(count if near else 0))
    suspects: list[int] = []

    def visit(part: range) -> dict[int, Tensor]:
        small, before = {}, heard.size()
        for place in part:
            try:
                data = read_file(root / paths[place])
                found.hashes[place] = hashlib.sha256(data).hexdigest()
                image = decode(data, max_pixels)
                if heard.read_since(before):  # in this image, or in one that another thread decodes
                    suspects.append(place)
                    before = heard.size()
            except ImageProblem as problem:
                found.note(place, problem)
                continue
            except MemoryError:
                hint = "decode fewer at once with --workers 1, or leave it out with --max-pixels"
                raise DataError(f"there is not enough memory to decode {root / paths[place]}", hint) from None
            if near:
                small[place] = thumbnail(image)
                found.signatures.ratios[place] = image.shape[2] / image.shape[1]
            del image  # its memory holds the next one
        return small

    with (
        capture_decoder_warnings() as heard,
        one_thread_each(),
        _silence(),
        closing(_run(visit, count, workers)) as visits,
    ):
        seen: dict[int, Tensor] = {}
        for done, small in visits:
            seen |= small
            if seen and (len(seen) >= _FILL or done == count):
                found.signatures.update(list(seen), list(seen.values()))
                seen.clear()
            progress(done, count)
        for place in suspects:
            found.problems[place] = _damage(root / paths[place], max_pixels, heard)
    return found


def _damage(file: Path, max_pixels: int, heard: DecoderWarnings) -> str:
    """What is wrong with an image that can be decoded, when nothing else is; "" for nothing.

    What is heard of a bare JPEG is damage: a picture whose data break off or lose step.
    """
    try:
        data = strip_metadata(read_file(file))
        before = heard.size()
        decode(data, max_pixels)
    except ImageProblem as problem:
        return str(problem)
    what = heard.read_since(before)
    return str(damaged(what)) if what and data.startswith(b"\xff\xd8") and not is_trailing_padding(what, data) else ""


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


@contextmanager
def _silence() -> Iterator[None]:
    """Pillow warns of oddities in metadata, without the file's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
