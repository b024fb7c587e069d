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
from inat_ft.registry import FEATURES, get

_BLOCK = 128
DECODER_VERSION = 1
"""Version of the pixels of decoders other than the one on the CPU."""


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
    decoder: str = "cpu"

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def key(self) -> dict[str, object]:
        return pixels_key(self.size, self.resizing, self.decoder)

    @property
    def store(self) -> Store:
        return packed_store(self.cache, self.size, self.resizing, self.decoder)

    def files(self) -> ImageFiles:
        """Return the images as a source that decodes on demand."""
        files = ImageFiles(self.paths, self.size, self.pool, resizing=self.resizing, hashes=self.hashes)
        if self.decoder == "cpu":
            return files
        on_gpu: ImageFiles = get(FEATURES, f"{self.decoder}-decode").load()(files, self.labels.device)
        return on_gpu

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


def pixels_key(size: int, resizing: Resizing = SQUASH, decoder: str = "cpu") -> dict[str, object]:
    """Return everything that determines the pixels of an image, except its file."""
    other = {} if decoder == "cpu" else {"decoder": f"{decoder} {DECODER_VERSION}"}
    return {"pixels": PIXELS_VERSION, "size": size, **resizing.key, **other}


def packed_store(cache: Path, size: int, resizing: Resizing = SQUASH, decoder: str = "cpu") -> Store:
    """Return the packed cache for an image size: uint8 rows `[H, W, 3]`."""
    return open_store(cache, "packed", pixels_key(size, resizing, decoder), (size, size, 3), "u1")
