"""From rows of images or activations to batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inat_ft.errors import DataError
from inat_ft.images import augment
from inat_ft.images.decode import MAX_PIXELS, load_image
from inat_ft.images.resizing import SQUASH, Resizing

_AHEAD = 2
_VARIATIONS = {"flip": augment.flip, "standard": augment.standard}


class Source(Protocol):
    """Rows that can be asked for by number, in any order."""

    def __len__(self) -> int: ...

    def rows(self, numbers: Tensor) -> Tensor:
        """The rows of these numbers (`[B]` int64, on the CPU), stacked."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files, decoded and resized when asked for: uint8 `[B, H, W, 3]`, RGB."""

    paths: Sequence[Path]
    size: int
    pool: ThreadPoolExecutor
    """Decodes side by side; decoders release Python's lock."""
    problems: dict[int, DataError] | None = None
    """Where to note what cannot be decoded, which is black then; without it, it is an error."""
    resizing: Resizing = SQUASH
    hashes: Sequence[str] | None = None
    """SHA-256 that the bytes of each file must have, in hex; None does not check it."""

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, numbers: Tensor) -> Tensor:
        """Decode these images. Raises DataError naming the first that cannot be, unless problems are noted."""
        return torch.from_numpy(np.stack(list(self.pool.map(self._load, numbers.tolist()))))

    def _load(self, number: int) -> NDArray[np.uint8]:
        sha256 = self.hashes[number] if self.hashes else None
        if self.problems is None:  # images of a manifest, for which `split` has set a limit
            return load_image(self.paths[number], self.size, resizing=self.resizing, sha256=sha256)
        try:
            return load_image(self.paths[number], self.size, MAX_PIXELS, self.resizing, sha256)
        except DataError as problem:
            self.problems[number] = problem
            return np.zeros((self.size, self.size, 3), np.uint8)


@dataclass(frozen=True)
class StoredRows:
    """Rows of a memory-mapped store; `positions` `[N]` says where each row of ours stands in it."""

    mapped: np.ndarray
    positions: np.ndarray
    as_bfloat16: bool = False
    """The store holds the bits of bfloat16, which numpy does not have, as uint16."""

    def __len__(self) -> int:
        return len(self.positions)

    def rows(self, numbers: Tensor) -> Tensor:
        """Copy these rows into memory."""
        rows = torch.from_numpy(np.ascontiguousarray(self.mapped[self.positions[numbers.numpy()]]))
        return rows.view(torch.bfloat16) if self.as_bfloat16 else rows


@dataclass(frozen=True)
class ResidentRows:
    """Rows that stay on the device."""

    data: Tensor

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, numbers: Tensor) -> Tensor:
        """Gather these rows on the device."""
        return self.data[numbers.to(self.data.device, non_blocking=True)]


@dataclass(frozen=True)
class Batches:
    """Labelled rows, handed over in batches on the device.

    labels: int64 `[N]`, on the device. prepare(rows, numbers): from rows as stored, with their numbers, to what stage
    number `start` takes; both on the device.
    """

    source: Source
    labels: Tensor
    batch_size: int
    prepare: Callable[[Tensor, Tensor], Tensor]
    start: int = 0
    min_batch: int = 2
    """A last batch with fewer rows joins the one before: BatchNorm needs two, and each of several processes one."""
    frozen: Callable[[Tensor], Tensor] | None = None
    """From what stage `start` takes to what follows the frozen stages, where these are computed in a form of their own."""

    @property
    def num_images(self) -> int:
        """How many rows there are."""
        return len(self.source)

    def numbers(self, order: Tensor | None = None) -> list[Tensor]:
        """The numbers of the rows of each batch."""
        order = torch.arange(self.num_images) if order is None else order
        parts = list(torch.split(order, self.batch_size))
        if len(parts) > 1 and len(parts[-1]) < min(self.min_batch, self.batch_size):
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def __call__(
        self, order: Tensor | None = None, share: Callable[[int], slice | Tensor] = slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (input, labels) in an order `[M]` int64 on the CPU; None means each row once, as they stand.

        share(count): which of the rows of a batch are wanted. The rows of the next batches are fetched by a thread while
        the caller computes.
        """
        device = self.labels.device
        orders = [numbers[share(len(numbers))] for numbers in self.numbers(order)]
        for rows, places in _ahead(self.source, orders, pin=device.type == "cuda"):
            numbers = places.to(device, non_blocking=True)
            yield self.prepare(rows.to(device, non_blocking=True), numbers), self.labels[numbers]


def _ahead(source: Source, orders: Sequence[Tensor], pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(source, ResidentRows):
        for numbers in orders:
            yield source.rows(numbers), numbers
        return

    def fetch(numbers: Tensor) -> tuple[Tensor, Tensor]:
        rows = source.rows(numbers)
        return (rows.pin_memory(), numbers.pin_memory()) if pin else (rows, numbers)

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting: list[Future[tuple[Tensor, Tensor]]] = []
        try:
            for numbers in orders:
                waiting.append(thread.submit(fetch, numbers))
                if len(waiting) > _AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for left in waiting:
                left.cancel()


@dataclass(frozen=True)
class ImageInput:
    """From uint8 images `[B, H, W, 3]` to the network's input `[B, 3, H, W]` float32, channels last in memory."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: str = "none"
    draws: Tensor | None = None
    """What augmentation does to each image of the source, `[N, 8]` on the device (augment.draw)."""

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Vary the images if asked to, then (x / 255 - mean) / std, channel by channel."""
        if self.draws is not None:
            images = _VARIATIONS[self.augment](images, self.draws[numbers])
        # a row of pixels at a time: three numbers at a time would be a quarter as fast on a CPU
        mean, std = (_row(each, images.shape[2], images.device) for each in (self.mean, self.std))
        rows = images.flatten(2).to(torch.float32).div(255).sub_(mean).div_(std)
        return rows.view(images.shape).permute(0, 3, 1, 2)


def _row(pixel: tuple[float, float, float], width: int, device: torch.device) -> Tensor:
    """Return one pixel's values repeated along a row, `[3 * width]` float32.

    Filled on the device, which needs no transfer from the host. Not cached: a tensor made while torch traces, compiles or
    runs in inference mode must not be used by a later call.
    """
    return torch.stack(
        [torch.full((width,), value, dtype=torch.float32, device=device) for value in pixel], 1
    ).flatten()
