"""The images of one subset, decoded on demand or read from the packed cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inat_ft.cache.array_store import Store, open_store
from inat_ft.data.batches import ImageFiles, StoredRows
from inat_ft.images.decode import PIXELS_VERSION
from inat_ft.images.resizing import SQUASH, Resizing
from inat_ft.progress import ProgressFn

_BLOCK = 128


@dataclass(frozen=True)
class Pixels:
    """Images of one subset at one size. labels: int64 `[N]` on the device; hashes: SHA-256 of each file's content.

    Files with other content are not decoded, so that a cached row always belongs to its hash.
    """

    paths: Sequence[Path]
    hashes: Sequence[str]
    labels: Tensor
    size: int
    cache: Path
    pool: ThreadPoolExecutor
    resizing: Resizing = SQUASH

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def key(self) -> dict[str, object]:
        """Return everything that determines the pixels of an image, except its file."""
        return pixels_key(self.size, self.resizing)

    @property
    def store(self) -> Store:
        """Return the packed cache for this image size: uint8 rows `[H, W, 3]`."""
        return open_store(self.cache, "packed", self.key, (self.size, self.size, 3), "u1")

    def files(self) -> ImageFiles:
        """Return the images as a source that decodes on demand."""
        return ImageFiles(self.paths, self.size, self.pool, resizing=self.resizing, hashes=self.hashes)

    def is_packed(self) -> bool:
        """Return whether every image is in the packed cache."""
        return not self.store.missing(self.hashes)

    def packed(self, progress: ProgressFn) -> StoredRows:
        """Return the images from the packed cache, adding missing ones. Raises DataError when the disk is full."""
        files = self.files()

        def make(missing: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
            for start in range(0, len(missing), _BLOCK):
                yield files.rows(torch.tensor(missing[start : start + _BLOCK])).numpy()

        self.store.ensure(self.hashes, make, progress)
        return StoredRows(*self.store.read(self.hashes))


def pixels_key(size: int, resizing: Resizing = SQUASH) -> dict[str, object]:
    """Return everything that determines the pixels of an image, except its file."""
    return {"pixels": PIXELS_VERSION, "size": size, **resizing.key}
