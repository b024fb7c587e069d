"""Compute small signatures of images, by which near duplicates are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

THUMB = 32
"""Side of the thumbnails, in pixels."""

_PARTS = 8
"""Parts along each side of an image whose mean colors are stored."""
_ROWS = 128
"""Rows of an image from which its thumbnail is made. All rows would take two and a half times as long."""
_LOW_CONTRAST = 32.0
"""Standard deviation of a thumbnail below which all rows are used."""


@dataclass(frozen=True)
class ImageSignatures:
    """Signatures of N images, to find near duplicates.

    phashes: perceptual hash, uint64 `[N]`; thumbs: gray thumbnails, uint8 `[N, 32, 32]`; colors: mean red, green and
    blue of parts of the image, uint8 `[N, 8, 8, 3]`; ratios: width by height, float32 `[N]`.
    """

    phashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]
    colors: NDArray[np.uint8]
    ratios: NDArray[np.float32]

    @classmethod
    def blank(cls, count: int) -> ImageSignatures:
        """Return empty signatures, to be filled by `update`."""
        thumbs, colors = np.zeros((count, THUMB, THUMB), np.uint8), np.zeros((count, _PARTS, _PARTS, 3), np.uint8)
        return cls(np.zeros(count, np.uint64), thumbs, colors, np.ones(count, np.float32))

    def take(self, places: NDArray[np.int64]) -> ImageSignatures:
        """Return the signatures of these images."""
        return ImageSignatures(self.phashes[places], self.thumbs[places], self.colors[places], self.ratios[places])

    def update(self, places: Sequence[int], small: Sequence[Tensor]) -> None:
        """Compute the signatures at `places` from thumbnails uint8 `[3, 32, 32]`, faster in batches."""
        pictures, side = np.stack([each.numpy() for each in small]).astype(np.uint16), THUMB // _PARTS
        sums = pictures.reshape(-1, 3, _PARTS, side, _PARTS, side).sum((3, 5), dtype=np.uint16)
        self.colors[places] = ((sums + side**2 // 2) // side**2).transpose(0, 2, 3, 1)
        red, green, blue = np.moveaxis(pictures, 1, 0)
        gray = ((77 * red + 150 * green + 29 * blue + 128) // 256).astype(
            np.uint8
        )  # integers: the same on every machine
        self.thumbs[places] = gray
        self.phashes[places] = phash(gray)


def phash(gray: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Return hashes uint64 `[N]` of gray images `[N, 32, 32]`: which of the 64 lowest frequencies exceed the median.

    The bits are those of imagehash's `phash`, computed for a batch.
    """
    from scipy.fft import dctn

    low = dctn(gray.astype(np.float64), axes=(1, 2))[:, :8, :8].reshape(len(gray), 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return bits.view(">u8")[:, 0].astype(np.uint64)


def thumbnail(image: Tensor) -> Tensor:
    """Return an image uint8 `[3, H, W]` as uint8 `[3, 32, 32]`, resized bilinearly with antialiasing.

    Only some rows are used, unless contrast is low, as in a photograph of grass: then the other rows would matter.
    """
    import torch

    if (height := image.shape[1]) > _ROWS:
        rows = (2 * torch.arange(_ROWS) + 1) * height // (2 * _ROWS)
        some = _shrunk(image.permute(1, 2, 0).index_select(0, rows).permute(2, 0, 1))
        green = some[1].numpy().ravel().astype(np.float32)
        if green @ green / green.size - (green.sum() / green.size) ** 2 >= _LOW_CONTRAST**2:
            return some
    return _shrunk(image)


def _shrunk(image: Tensor) -> Tensor:
    from torch.nn.functional import interpolate

    return interpolate(image[None], (THUMB, THUMB), mode="bilinear", antialias=True)[0]
