"""Compare signatures of two images: brightness, colors and thumbnails. All functions are vectorized over P pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

CLIPPED = 240.0
"""Grey level or color from which pixels of a brightened copy may be clipped."""
MIN_CONTRAST = 12.0
"""Smallest standard deviation of a thumbnail compared with a grayscale or clipped copy: plain images agree by chance."""

_NOISE = 0.5
_MAX_GAIN = 1.35
_MAX_RMS = 0.12
_MAX_WORST = 4.0
_MIN_UNCLIPPED = 0.1
_MAX_TINT, MAX_TINT_OF_A_PART = 10.0, 16.0
_MAX_CHROMA_OF_GREY = 3.0


def brightness_matches(level: Floats, other_level: Floats, contrast: Floats, other_contrast: Floats) -> Bools:
    """Return whether means and standard deviations of thumbnails, `[P]` each, allow that both show the same image."""
    gain = (contrast + _NOISE) / (other_contrast + _NOISE)
    limit = 2 + np.minimum(40, 2 * np.minimum(contrast, other_contrast))  # plain images must be equally bright
    result: Bools = (np.abs(level - other_level) <= limit) & (np.abs(np.log(gain)) <= np.log(_MAX_GAIN))
    return result


def blocks_may_match(first: Floats, second: Floats, contrast: Floats, other_contrast: Floats, slack: Floats) -> Bools:
    """Return which pairs can still pass `thumbnails_match`, from normalized 8 x 8 block means `[P, 64]`.

    Averaging cannot increase a root mean square, so no pair is lost. slack: factor on the limit, `[P]`; 1 without clipping.
    """
    rms = np.sqrt(((first - second) ** 2).mean(1)) * (contrast + _NOISE)
    limit = _NOISE + _MAX_RMS * np.minimum(contrast, other_contrast)
    result: Bools = rms <= slack * (1.001 * limit + 0.001)  # room for rounding
    return result


def colors_match(
    first: NDArray[np.generic], second: NDArray[np.generic], contrast: Floats, max_part: float = MAX_TINT_OF_A_PART
) -> Bools:
    """Return whether colors `[P, 8, 8, 3]` differ in brightness only, or one image is grayscale.

    Checked for the whole image, more strictly the lower its contrast, and for each part, since the subject may be small.
    Clipped parts are ignored where contrast is high. max_part: largest difference of a part, in levels.
    """
    a, b = (colors.reshape(len(colors), 64, 3).astype(np.float32) for colors in (first, second))
    brightest = np.maximum(a, b).max(2, keepdims=True)
    unclipped = ((brightest < CLIPPED) | (contrast < MIN_CONTRAST)[:, None, None]).astype(np.float32)
    grey_copy = (_is_grey(a) != _is_grey(b)) & (contrast >= MIN_CONTRAST)
    enough = unclipped.mean((1, 2)) >= _MIN_UNCLIPPED
    result: Bools = _same_tint(a, b, contrast, np.ones_like(unclipped), max_part) | grey_copy
    result |= enough & _same_tint(a, b, contrast, unclipped, max_part)
    return result


def _same_tint(a: Floats, b: Floats, contrast: Floats, weight: Floats, max_part: float) -> Bools:
    gain = (weight * a * b).sum((1, 2)) / np.maximum((weight * b * b).sum((1, 2)), 1)
    difference = weight * (a - gain[:, None, None] * b)
    part = np.abs(difference - difference.mean(2, keepdims=True)).max((1, 2))
    whole = np.abs(difference.sum(1) / np.maximum(weight.sum(1), 1)).max(1)
    result: Bools = (whole <= np.minimum(_MAX_TINT, 1 + contrast)) & (part <= max_part)
    return result


def _is_grey(colors: Floats) -> Bools:
    gray: Bools = np.ptp(colors, axis=2).max(1) <= _MAX_CHROMA_OF_GREY
    return gray


def thumbnails_match(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Bools:
    """Return whether thumbnails, uint8 `[P, 32, 32]`, show the same image up to brightness, contrast and clipped highlights.

    The second is fitted to the first by a gain and an offset. The difference must be small on average and in the worst cell,
    relative to the contrast: a small subject on a plain background shows in a few cells.
    """
    a, b = (thumbs.reshape(len(thumbs), -1).astype(np.float32) for thumbs in (first, second))
    everything = np.ones_like(a, dtype=bool)
    result = _cells_match(a, b, everything) & brightness_matches(a.mean(1), b.mean(1), a.std(1), b.std(1))
    (unsure,) = np.nonzero(~result & ((a >= CLIPPED) | (b >= CLIPPED)).any(1))
    a, b = a[unsure], b[unsure]
    unclipped = np.maximum(a, b) < CLIPPED
    (usable,) = np.nonzero(unclipped.mean(1) >= _MIN_UNCLIPPED)
    result[unsure[usable]] = _cells_match(a[usable], b[usable], unclipped[usable], MIN_CONTRAST)
    return result


def _cells_match(a: Floats, b: Floats, used: Bools, min_contrast: float = 0.0) -> Bools:
    """Fit b to a on the used cells, and compare all cells below the clipping level of the brighter thumbnail."""
    count = used.sum(1, keepdims=True)
    mean, other_mean = ((cells * used).sum(1, keepdims=True) / count for cells in (a, b))
    std, other_std = (
        np.sqrt((((cells - m) ** 2) * used).sum(1) / count[:, 0]) for cells, m in ((a, mean), (b, other_mean))
    )
    gain = (std + _NOISE) / (other_std + _NOISE)
    fitted = mean + gain[:, None] * (b - other_mean)
    difference = np.abs(a - fitted)
    if not used.all():
        top = np.where(mean >= other_mean, CLIPPED, mean + gain[:, None] * (CLIPPED - other_mean))
        difference = np.abs(np.minimum(a, top) - np.minimum(fitted, top))
    contrast = np.minimum(std, other_std)
    limit = _NOISE + _MAX_RMS * contrast
    result: Bools = (np.sqrt((difference**2).mean(1)) <= limit) & (difference.max(1) <= _MAX_WORST * limit)
    result &= (contrast >= min_contrast) & (np.abs(np.log(gain)) <= np.log(_MAX_GAIN))
    return result
