"""Batches on the device, from rows of images or activations."""

from __future__ import annotations

import sys
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


class RowSource(Protocol):
    """Rows with random access by number."""

    def __len__(self) -> int: ...

    def rows(self, numbers: Tensor, pin: bool = False) -> Tensor:
        """Return the rows of these numbers, `[B]` int64 on the CPU, stacked; with `pin`, in pinned memory."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files, decoded and resized on access: uint8 `[B, H, W, 3]`, RGB."""

    paths: Sequence[Path]
    size: int
    pool: ThreadPoolExecutor
    """Threads that decode; decoders release the GIL."""
    problems: dict[int, DataError] | None = None
    """Receives the errors of images that cannot be decoded, which become black. None raises the error."""
    resizing: Resizing = SQUASH
    hashes: Sequence[str] | None = None
    """Expected SHA-256 of each file, in hex; None does not check it."""

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, numbers: Tensor, pin: bool = False) -> Tensor:
        """Decode these images. Raises DataError for the first that cannot be decoded, unless `problems` receives it."""
        images = torch.empty(len(numbers), self.size, self.size, 3, dtype=torch.uint8, pin_memory=pin)
        for _ in self.pool.map(self._load, numbers.tolist(), images.numpy()):
            pass
        return images

    def _load(self, number: int, out: NDArray[np.uint8]) -> None:
        sha256 = self.hashes[number] if self.hashes else None
        limit = sys.maxsize if self.problems is None else MAX_PIXELS  # `split` has checked the images of a manifest
        try:
            out[...] = load_image(self.paths[number], self.size, limit, self.resizing, sha256)
        except DataError as problem:
            if self.problems is None:
                raise
            self.problems[number] = problem
            out[...] = 0


@dataclass(frozen=True)
class StoredRows:
    """Rows of a memory-mapped store; `positions` `[N]` holds the place of each row in it."""

    mapped: np.ndarray
    positions: np.ndarray
    as_bfloat16: bool = False
    """The store holds bfloat16 as uint16, because numpy has no bfloat16."""

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def num_bytes(self) -> int:
        """The size of all rows in memory."""
        return len(self) * int(np.prod(self.mapped.shape[1:])) * self.mapped.itemsize

    def rows(self, numbers: Tensor, pin: bool = False) -> Tensor:
        """Copy rows into memory."""
        dtype = torch.from_numpy(np.empty(0, self.mapped.dtype)).dtype
        rows = torch.empty(len(numbers), *self.mapped.shape[1:], dtype=dtype, pin_memory=pin)
        np.take(self.mapped, self.positions[numbers.numpy()], 0, rows.numpy(), "clip")  # `raise` copies twice
        return rows.view(torch.bfloat16) if self.as_bfloat16 else rows


@dataclass(frozen=True)
class MixedViews:
    """The rows of one of several sources for each image. choice: `[N]` int64 on the CPU."""

    sources: Sequence[StoredRows]
    choice: Tensor

    def __len__(self) -> int:
        return len(self.choice)

    def rows(self, numbers: Tensor, pin: bool = False) -> Tensor:
        """Copy rows into memory."""
        rows = self.sources[0].rows(numbers, pin)
        for number, source in enumerate(self.sources[1:], 1):
            chosen = self.choice[numbers] == number
            rows[chosen] = source.rows(numbers[chosen])
        return rows


@dataclass(frozen=True)
class ResidentRows:
    """Rows on the device. positions: `[N]` int64 on the device, the place of each row in `data`; None: its own."""

    data: Tensor
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data if self.positions is None else self.positions)

    def rows(self, numbers: Tensor, pin: bool = False) -> Tensor:
        """Gather rows on the device. numbers: on the device too."""
        return self.data[numbers if self.positions is None else self.positions[numbers]]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device. The host waits for the copy, except for one to CUDA, which is made from pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Batches:
    """Labelled rows in batches on the device.

    labels: int64 `[N]`, on the device. prepare(rows, numbers): converts stored rows, with their numbers, to the input of
    stage number `start`; both on the device.
    """

    source: RowSource
    labels: Tensor
    batch_size: int
    prepare: Callable[[Tensor, Tensor], Tensor]
    start: int = 0
    min_batch: int = 2
    """A last batch with fewer rows joins the previous one: BatchNorm requires two rows, and each process one."""
    frozen: Callable[[Tensor], Tensor] | None = None
    """Computes the frozen stages from the input of stage `start`, if they are not run as ordinary stages."""

    @property
    def num_images(self) -> int:
        """The number of rows."""
        return len(self.source)

    def numbers(self, order: Tensor | None = None) -> list[Tensor]:
        """Return the row numbers of each batch."""
        order = torch.arange(self.num_images) if order is None else order
        parts = list(torch.split(order, self.batch_size))
        if len(parts) > 1 and len(parts[-1]) < min(self.min_batch, self.batch_size):
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def __call__(
        self, order: Tensor | None = None, share: Callable[[int], slice | Tensor] = slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of (input, labels) in an order `[M]` int64 on the CPU; None yields each row once, in order.

        share(count): returns which of the `count` rows of a batch to use. Threads fetch the next batches while the caller
        computes.
        """
        device = self.labels.device
        orders = [numbers[share(len(numbers))] for numbers in self.numbers(order)]
        places = torch.split(to_device(torch.cat(orders), device), [len(numbers) for numbers in orders])
        if isinstance(self.source, ResidentRows):
            fetched: Iterator[Tensor] = map(self.source.rows, places)
        else:
            fetched = (to_device(rows, device) for rows in _ahead(self.source, orders, device.type == "cuda"))
        for rows, numbers in zip(fetched, places, strict=True):
            yield self.prepare(rows, numbers), self.labels[numbers]


def _ahead(source: RowSource, orders: Sequence[Tensor], pin: bool) -> Iterator[Tensor]:
    """Yield the rows of each batch; two batches are fetched at the same time."""
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="batches") as threads:
        waiting: list[Future[Tensor]] = []
        try:
            for numbers in orders:
                waiting.append(threads.submit(source.rows, numbers, pin))
                if len(waiting) > _AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for left in waiting:
                left.cancel()


@dataclass(frozen=True)
class ImageInput:
    """Convert uint8 images `[B, H, W, 3]` to the network's input `[B, 3, H, W]` float32, channels last in memory."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: str = "none"
    draws: Tensor | None = None
    """Random numbers of the augmentation of each image, `[N, 8]` on the device (augment.draw)."""

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Augment the images if `draws` is set, then return (x / 255 - mean) / std for each channel."""
        if self.draws is not None:
            images = _VARIATIONS[self.augment](images, self.draws[numbers])
        # broadcast over a row of pixels: four times as fast on a CPU as over three channels
        mean, std = (_row(each, images.shape[2], images.device) for each in (self.mean, self.std))
        rows = images.flatten(2).to(torch.float32).div(255).sub_(mean).div_(std)
        return rows.view(images.shape).permute(0, 3, 1, 2)


def _row(pixel: tuple[float, float, float], width: int, device: torch.device) -> Tensor:
    """Return one pixel's values repeated along a row, `[3 * width]` float32.

    Filled on the device, which needs no transfer from the host. Not cached: a tensor made while torch traces, compiles or
    runs in inference mode must not be used by a later call.
    """
    channels = [torch.full((width,), value, dtype=torch.float32, device=device) for value in pixel]
    return torch.stack(channels, 1).flatten()
