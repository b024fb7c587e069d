"""Crop images to boxes, and resize images of any aspect ratio to squares. Imports torch only when used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from inat_ft.images.boxes import Box

if TYPE_CHECKING:
    from torch import Tensor

_CROP_MARGIN = 256 / 224
"""Shorter side relative to the crop, as in torchvision's reference evaluation."""

_MAX_RATIO = 8
"""Largest aspect ratio of an image to crop. A longer side is cut before resizing, which would need too much memory."""


class Resizing(NamedTuple):
    """How an image of any aspect ratio is resized to a square.

    squash: the whole image, ignoring its aspect ratio; crop: the shorter side to 256/224 of the size, then a center
    crop, as in torchvision's evaluation; pad: the whole image, keeping its aspect ratio, centered on `fill`. With crop_pct,
    the side is the size / crop_pct, and Pillow resizes: pixels are those of the transforms of torchvision and timm.
    """

    mode: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_pct: float | None = None
    fill: tuple[int, int, int] = (0, 0, 0)

    @property
    def key(self) -> dict[str, object]:
        """Return the part of a cache key for this resizing; {} by default, so that rows of earlier versions stay valid."""
        own = {} if self.crop_pct is None else {"crop_pct": self.crop_pct, "fill": self.fill}
        return {} if self == SQUASH else {"resize": self.mode, "interpolation": self.interpolation, **own}


SQUASH = Resizing()


def to_square(pixels: Tensor, size: int, resizing: Resizing = SQUASH) -> Tensor:
    """Return an image uint8 `[3, H, W]` as uint8 `[3, size, size]`, resized with antialiasing."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import center_crop, pad, pil_to_tensor, resize, to_pil_image

    mode, interpolation, crop_pct, fill = resizing
    height, width = pixels.shape[1:]
    side = math.floor(size / crop_pct) if crop_pct else round(size * _CROP_MARGIN) if mode == "crop" else size
    if mode == "squash":
        sides = [side, side]
    elif mode == "crop":
        sides = [side]  # of the shorter side
        longest = _MAX_RATIO * min(height, width)
        if max(height, width) > longest:
            pixels = center_crop(pixels, [min(height, longest), min(width, longest)])
    else:
        sides = [max(1, round(side * each / max(height, width))) for each in (height, width)]
    with_pillow = crop_pct is not None and pixels.device.type == "cpu"
    given: Any = to_pil_image(pixels) if with_pillow else pixels
    resized = resize(given, sides, interpolation=InterpolationMode(interpolation), antialias=True)
    square: Tensor = pil_to_tensor(resized) if with_pillow else resized
    if mode == "pad":
        top, left = ((size - each) // 2 for each in sides)
        square = pad(square, [left, top, size - sides[1] - left, size - sides[0] - top], fill=list(fill))
    return center_crop(square, [size, size]) if mode == "crop" or crop_pct else square


def crop(pixels: Tensor, box: Box | None) -> Tensor:
    """Return the part `[3, h, w]` of an image `[3, H, W]` that contains a box, at least one pixel."""
    if box is None:
        return pixels
    height, width = pixels.shape[1:]
    left, top = math.floor(box.x * width), math.floor(box.y * height)
    right, bottom = math.ceil((box.x + box.w) * width - 1e-6), math.ceil((box.y + box.h) * height - 1e-6)
    return pixels[:, top : max(bottom, top + 1), left : max(right, left + 1)]
