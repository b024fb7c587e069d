"""Compare thumbnails of an image and of a slightly cropped copy.

A crop of a few percent shifts every edge by up to a thumbnail cell, so that thumbnails do not agree cell by cell. Fit the
position of the crop by Gauss-Newton steps on the thumbnails (Lucas and Kanade 1981), then compare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inat_ft.images.signatures import THUMB

Floats = NDArray[np.float32]

MIN_CONTRAST = 16.0
"""Smallest standard deviation of a thumbnail that is searched for crops."""
MIN_TYPICAL_BLOCK = 0.25
"""Smallest median of absolute normalized block means: a small subject on a plain background does not determine a position."""
TYPICAL_SIDE = 0.965
"""Side of the crop from which the fit starts, relative to the image."""
_MIN_SIDE, _MAX_SIDE = 0.91, 1.01
_MAX_MEAN_SIDE = 0.99
_STEPS = 3
_OUTSIDE = 0.018
"""How far a fitted crop may reach beyond the image, as a fraction of half a side. Images that only overlap reach further."""
_MAX_RMS, _MAX_WORST = 0.18, 1.1
"""Relative to the contrast."""
_MAX_UNEXPLAINED, _MAX_UNEXPLAINED_OF_A_LARGE_CROP, _UNEXPLAINED_SLOPE = 0.76, 0.5, 8.0
"""Fraction of the difference that may remain after the fit: for sides from 0.98, for large crops, and the slope between."""


class Region(NamedTuple):
    """The region of each image that its crop shows, with the image spanning -1 to 1: center and side, `[P, 2]` as x, y."""

    center: Floats
    side: Floats

    def resample(self, grids: NDArray[np.generic]) -> Floats:
        """Return the regions of square grids `[P, S, S]` or `[P, S, S, C]`, in the same shape."""
        channels = np.moveaxis(grids.astype(np.float32).reshape(*grids.shape[:3], -1), 3, 1)
        rows = _weights(self.center[:, 1], self.side[:, 1], grids.shape[1])[:, None]
        columns = _weights(self.center[:, 0], self.side[:, 0], grids.shape[1])[:, None]
        resampled = np.matmul(np.matmul(rows, channels), columns.swapaxes(2, 3)).astype(np.float32, copy=False)
        result: Floats = np.moveaxis(resampled, 1, 3).reshape(grids.shape)
        return result

    def is_crop(self) -> NDArray[np.bool_]:
        """Return which regions are inside their image and smaller than it."""
        inside: NDArray[np.bool_] = (np.abs(self.center) - (1 - self.side)).max(1) <= _OUTSIDE
        inside &= self.side.mean(1) <= _MAX_MEAN_SIDE
        return inside


def central_region(count: int) -> Region:
    """Return the central region of a typical crop for each of `count` images."""
    return Region(np.zeros((count, 2), np.float32), np.full((count, 2), TYPICAL_SIDE, np.float32))


def fit_region(images: NDArray[np.uint8], crops: NDArray[np.uint8]) -> Region:
    """Return the region of each thumbnail of `images` that fits the thumbnail in `crops` best; both `[P, 32, 32]`.

    Brightness and contrast are fitted too.
    """
    region = central_region(len(images))
    across = _centers(THUMB)
    target = crops.astype(np.float32).reshape(len(crops), -1, 1)
    for _ in range(_STEPS):
        shown = region.resample(images)
        down, right = np.gradient(shown, 2 / THUMB, axis=(1, 2))
        right, down = (
            right / region.side[:, 0, None, None],
            down / region.side[:, 1, None, None],
        )  # per unit of the image
        columns = [shown, np.ones_like(shown), right, down, right * across, down * across[:, None]]
        design = np.stack(columns, 3).reshape(len(images), -1, 6)
        transposed = design.transpose(0, 2, 1)
        normal = (transposed @ design).astype(np.float64)
        normal += 1e-4 * np.eye(6) * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6  # solvable for any image
        gain, _, *shift = np.linalg.solve(normal, (transposed @ target).astype(np.float64))[:, :, 0].T
        step = (np.stack(shift, 1) / np.maximum(gain, 0.3)[:, None]).clip(-0.1, 0.1).astype(np.float32)
        region = Region(
            (region.center + step[:, :2]).clip(-0.1, 0.1), (region.side + step[:, 2:]).clip(_MIN_SIDE, _MAX_SIDE)
        )
    return region


def agrees(region: Region, images: NDArray[np.uint8], crops: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which crops show the region of their image, up to brightness and contrast; thumbnails `[P, 32, 32]`.

    The fit must explain most of the difference between the image and the crop, and more of it for larger crops: similar
    drawings differ with and without it.
    """
    rms, worst = _difference(region.resample(images), crops)
    before, _ = _difference(images.astype(np.float32), crops)
    unexplained = _MAX_UNEXPLAINED - _UNEXPLAINED_SLOPE * (0.98 - region.side.mean(1))
    limit = unexplained.clip(_MAX_UNEXPLAINED_OF_A_LARGE_CROP, _MAX_UNEXPLAINED) * before
    result: NDArray[np.bool_] = (rms <= _MAX_RMS) & (worst <= _MAX_WORST) & (rms <= limit)
    return result


def _difference(images: Floats, crops: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Return the root mean square and the largest difference of normalized thumbnails, relative to contrast; `[P]` each."""
    a, b = images.reshape(len(images), -1), crops.reshape(len(crops), -1).astype(np.float32)
    contrast, other = a.std(1), b.std(1)
    gain = (other / contrast)[:, None]
    difference = np.abs(gain * (a - a.mean(1, keepdims=True)) - (b - b.mean(1, keepdims=True)))
    least = np.minimum(contrast, other)
    return np.sqrt((difference**2).mean(1)) / least, difference.max(1) / least


def _centers(cells: int) -> Floats:
    result: Floats = ((2 * np.arange(cells) + 1) / cells - 1).astype(np.float32)
    return result


def _weights(center: Floats, side: Floats, cells: int) -> Floats:
    """Return weights `[P, S, S]` that interpolate along one axis of a grid (Catmull-Rom)."""
    position = ((center[:, None] + side[:, None] * _centers(cells) + 1) * cells - 1) / 2
    distance = np.abs(position.clip(0, cells - 1)[:, :, None] - np.arange(cells))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    result: Floats = (weights / weights.sum(2, keepdims=True)).astype(np.float32)
    return result
