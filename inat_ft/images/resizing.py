"""Resize images of any aspect ratio to squares. Imports torch only when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

_CROP_MARGIN = 256 / 224
"""Shorter side relative to the crop, as in torchvision's reference evaluation."""

_MAX_RATIO = 8
"""Largest aspect ratio of an image to crop. A longer side is cut before resizing, which would need too much memory."""


class Resizing(NamedTuple):
    """How an image of any aspect ratio is resized to a square.

    squash: the whole image, ignoring its aspect ratio; crop: the shorter side to 256/224 of the size, then a center
    crop, as in torchvision's evaluation; pad: the whole image, keeping its aspect ratio, centered on black.
    """

    mode: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def key(self) -> dict[str, object]:
        """Return the part of a cache key for this resizing; {} by default, so that rows of earlier versions stay valid."""
        return {} if self == SQUASH else {"resize": self.mode, "interpolation": self.interpolation}


SQUASH = Resizing()


def to_square(pixels: Tensor, size: int, resizing: Resizing = SQUASH) -> Tensor:
    """Return an image uint8 `[3, H, W]` as uint8 `[3, size, size]`, resized with antialiasing."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import center_crop, pad, resize

    interpolation = InterpolationMode(resizing.interpolation)
    height, width = pixels.shape[1:]
    if resizing.mode == "squash":
        sides = [size, size]
    elif resizing.mode == "crop":
        sides = [round(size * _CROP_MARGIN)]  # of the shorter side
        longest = _MAX_RATIO * min(height, width)
        if max(height, width) > longest:
            pixels = center_crop(pixels, [min(height, longest), min(width, longest)])
    else:
        sides = [max(1, round(size * side / max(height, width))) for side in (height, width)]
    square: Tensor = resize(pixels, sides, interpolation=interpolation, antialias=True)
    if resizing.mode == "crop":
        square = center_crop(square, [size, size])
    elif resizing.mode == "pad":
        top, left = ((size - side) // 2 for side in sides)
        square = pad(square, [left, top, size - sides[1] - left, size - sides[0] - top])
    return square
