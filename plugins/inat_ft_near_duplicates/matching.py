"""Compare the signatures of two images: brightness, colors, thumbnails, and crops. All functions work on P pairs.

A crop of a few percent shifts every edge by up to a cell of a thumbnail, so thumbnails do not agree cell by cell. The
position of the crop is first fitted by Gauss-Newton steps (Lucas and Kanade 1981).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inat_ft_near_duplicates.signatures import THUMB

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

CLIPPED = 240.0
"""Gray level or color from which pixels of a brightened copy may be clipped."""
NOISE = 0.5
"""Standard deviation, in levels, that is added to every contrast."""
_MIN_CONTRAST = 12.0
"""Smallest standard deviation of a thumbnail compared with a grayscale or clipped copy: plain images agree by chance."""
_MAX_GAIN = 1.35
_MAX_RMS, _MAX_WORST = 0.12, 4.0
_MIN_UNCLIPPED = 0.1
_MAX_TINT, _MAX_TINT_OF_A_PART = 10.0, 16.0
_MAX_CHROMA_OF_GRAY = 3.0

_TYPICAL_SIDE = 0.965
"""Side of the crop from which the fit starts, relative to the image."""
_MIN_SIDE, _MAX_SIDE, _MAX_MEAN_SIDE = 0.91, 1.01, 0.99
_STEPS = 3
_OUTSIDE = 0.018
"""How far a fitted crop may reach beyond the image, as a fraction of half a side. Images that only overlap reach further."""
_MAX_RMS_OF_A_CROP, _MAX_WORST_OF_A_CROP = 0.18, 1.1
"""Relative to the contrast."""
_MAX_UNEXPLAINED, _MAX_UNEXPLAINED_OF_A_LARGE_CROP, _UNEXPLAINED_SLOPE = 0.76, 0.5, 8.0
"""Fraction of the difference that may remain after the fit: for sides from 0.98, for large crops, and the slope between."""


def brightness_matches(level: Floats, other_level: Floats, contrast: Floats, other_contrast: Floats) -> Bools:
    """Return whether means and standard deviations of thumbnails, `[P]` each, allow that both show the same image."""
    gain = (contrast + NOISE) / (other_contrast + NOISE)
    limit = 2 + np.minimum(40, 2 * np.minimum(contrast, other_contrast))  # plain images must be equally bright
    result: Bools = (np.abs(level - other_level) <= limit) & (np.abs(np.log(gain)) <= np.log(_MAX_GAIN))
    return result


def blocks_may_match(first: Floats, second: Floats, contrast: Floats, other_contrast: Floats, slack: Floats) -> Bools:
    """Return which pairs can still pass `thumbnails_match`, from normalized 8 x 8 block means `[P, 64]`.

    Averaging cannot increase a root mean square, so no pair is lost. slack: factor on the limit, `[P]`; 1 without clipping.
    """
    rms: Floats = np.sqrt(((first - second) ** 2).mean(1)) * (contrast + NOISE)
    limit = NOISE + _MAX_RMS * np.minimum(contrast, other_contrast)
    return rms <= slack * (1.001 * limit + 0.001)  # room for rounding


def colors_match(
    first: NDArray[np.generic], second: NDArray[np.generic], contrast: Floats, max_part: float = _MAX_TINT_OF_A_PART
) -> Bools:
    """Return whether colors `[P, 8, 8, 3]` differ in brightness only, or one image is grayscale.

    Checked for the whole image, more strictly the lower its contrast, and for each part, since the subject may be small.
    Clipped parts are ignored where contrast is high. max_part: largest difference of a part, in levels.
    """
    a, b = (colors.reshape(len(colors), 64, 3).astype(np.float32) for colors in (first, second))
    brightest = np.maximum(a, b).max(2, keepdims=True)
    unclipped = ((brightest < CLIPPED) | (contrast < _MIN_CONTRAST)[:, None, None]).astype(np.float32)
    a_is_gray, b_is_gray = (np.ptp(colors, axis=2).max(1) <= _MAX_CHROMA_OF_GRAY for colors in (a, b))
    enough = unclipped.mean((1, 2)) >= _MIN_UNCLIPPED
    result = _same_tint(a, b, contrast, np.ones_like(unclipped), max_part)
    result |= (a_is_gray != b_is_gray) & (contrast >= _MIN_CONTRAST)
    result |= enough & _same_tint(a, b, contrast, unclipped, max_part)
    return result


def _same_tint(a: Floats, b: Floats, contrast: Floats, weight: Floats, max_part: float) -> Bools:
    gain = (weight * a * b).sum((1, 2)) / np.maximum((weight * b * b).sum((1, 2)), 1)
    difference = weight * (a - gain[:, None, None] * b)
    part = np.abs(difference - difference.mean(2, keepdims=True)).max((1, 2))
    whole = np.abs(difference.sum(1) / np.maximum(weight.sum(1), 1)).max(1)
    result: Bools = (whole <= np.minimum(_MAX_TINT, 1 + contrast)) & (part <= max_part)
    return result


def thumbnails_match(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Bools:
    """Return whether thumbnails, uint8 `[P, 32, 32]`, show the same image up to brightness, contrast and clipped highlights.

    The second is fitted to the first by a gain and an offset. The difference must be small on average and in the worst cell,
    relative to the contrast: a small subject on a plain background shows in a few cells.
    """
    a, b = (thumbs.reshape(len(thumbs), -1).astype(np.float32) for thumbs in (first, second))
    result = _cells_match(a, b, np.ones_like(a, dtype=bool))
    result &= brightness_matches(a.mean(1), b.mean(1), a.std(1), b.std(1))
    (unsure,) = np.nonzero(~result & ((a >= CLIPPED) | (b >= CLIPPED)).any(1))
    a, b = a[unsure], b[unsure]
    unclipped = np.maximum(a, b) < CLIPPED
    (usable,) = np.nonzero(unclipped.mean(1) >= _MIN_UNCLIPPED)
    result[unsure[usable]] = _cells_match(a[usable], b[usable], unclipped[usable], _MIN_CONTRAST)
    return result


def _cells_match(a: Floats, b: Floats, used: Bools, min_contrast: float = 0.0) -> Bools:
    """Fit b to a on the used cells, and compare all cells below the clipping level of the brighter thumbnail."""
    count = used.sum(1)
    mean, other_mean = ((cells * used).sum(1) / count for cells in (a, b))
    pairs = ((a, mean), (b, other_mean))
    std, other_std = (np.sqrt((((cells - m[:, None]) ** 2) * used).sum(1) / count) for cells, m in pairs)
    gain = (std + NOISE) / (other_std + NOISE)
    fitted = mean[:, None] + gain[:, None] * (b - other_mean[:, None])
    difference = np.abs(a - fitted)
    if not used.all():
        top = np.where(mean >= other_mean, CLIPPED, mean + gain * (CLIPPED - other_mean))[:, None]
        difference = np.abs(np.minimum(a, top) - np.minimum(fitted, top))
    contrast = np.minimum(std, other_std)
    limit = NOISE + _MAX_RMS * contrast
    result: Bools = (np.sqrt((difference**2).mean(1)) <= limit) & (difference.max(1) <= _MAX_WORST * limit)
    result &= (contrast >= min_contrast) & (np.abs(np.log(gain)) <= np.log(_MAX_GAIN))
    return result


class Region(NamedTuple):
    """The region of each image that its crop shows, with the image spanning -1 to 1: center and side, `[P, 2]` as x, y."""

    center: Floats
    side: Floats

    def resample(self, grids: NDArray[np.generic]) -> Floats:
        """Return the regions of square grids `[P, S, S]` or `[P, S, S, C]`, in the same shape."""
        channels = np.moveaxis(grids.astype(np.float32).reshape(*grids.shape[:3], -1), 3, 1)
        rows, columns = (_weights(self.center[:, i], self.side[:, i], grids.shape[1])[:, None] for i in (1, 0))
        resampled: Floats = np.matmul(np.matmul(rows, channels), columns.swapaxes(2, 3)).astype(np.float32, copy=False)
        return np.moveaxis(resampled, 1, 3).reshape(grids.shape)


def central_region(count: int) -> Region:
    """Return the central region of a typical crop for each of `count` images."""
    return Region(np.zeros((count, 2), np.float32), np.full((count, 2), _TYPICAL_SIDE, np.float32))


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
        right, down = right / region.side[:, 0, None, None], down / region.side[:, 1, None, None]
        columns = [shown, np.ones_like(shown), right, down, right * across, down * across[:, None]]
        design = np.stack(columns, 3).reshape(len(images), -1, 6)
        transposed = design.transpose(0, 2, 1)
        normal = (transposed @ design).astype(np.float64)
        normal += 1e-4 * np.eye(6) * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6  # solvable for any image
        gain, _, *shift = np.linalg.solve(normal, (transposed @ target).astype(np.float64))[:, :, 0].T
        step = (np.stack(shift, 1) / np.maximum(gain, 0.3)[:, None]).clip(-0.1, 0.1).astype(np.float32)
        center, side = region.center + step[:, :2], region.side + step[:, 2:]
        region = Region(center.clip(-0.1, 0.1), side.clip(_MIN_SIDE, _MAX_SIDE))
    return region


def crops_match(region: Region, images: NDArray[np.uint8], crops: NDArray[np.uint8]) -> Bools:
    """Return which crops show the region of their image, up to brightness and contrast; thumbnails `[P, 32, 32]`.

    The region must be inside the image and smaller than it. The fit must explain most of the difference between the image and
    the crop, and more of it for larger crops: similar drawings differ with and without it.
    """
    rms, worst = _difference(region.resample(images), crops)
    before, _ = _difference(images.astype(np.float32), crops)
    unexplained = _MAX_UNEXPLAINED - _UNEXPLAINED_SLOPE * (0.98 - region.side.mean(1))
    limit = unexplained.clip(_MAX_UNEXPLAINED_OF_A_LARGE_CROP, _MAX_UNEXPLAINED) * before
    result: Bools = (rms <= _MAX_RMS_OF_A_CROP) & (worst <= _MAX_WORST_OF_A_CROP) & (rms <= limit)
    result &= (np.abs(region.center) - (1 - region.side)).max(1) <= _OUTSIDE
    result &= region.side.mean(1) <= _MAX_MEAN_SIDE
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
    return ((2 * np.arange(cells) + 1) / cells - 1).astype(np.float32)


def _weights(center: Floats, side: Floats, cells: int) -> Floats:
    """Return weights `[P, S, S]` that interpolate along one axis of a grid (Catmull-Rom)."""
    position = ((center[:, None] + side[:, None] * _centers(cells) + 1) * cells - 1) / 2
    distance = np.abs(position.clip(0, cells - 1)[:, :, None] - np.arange(cells))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    normalized: Floats = (weights / weights.sum(2, keepdims=True)).astype(np.float32)
    return normalized
