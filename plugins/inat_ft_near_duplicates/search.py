"""Find exact and near duplicates: equal files, and copies that were recompressed, resized, brightened, or slightly cropped.

Candidates are pairs whose perceptual hashes differ in at most 7 of 64 bits. Such a pair differs in at most one bit in at
least one of the four 16-bit quarters, so looking up each quarter and its 16 neighbors finds all of them without comparing
every pair. To find crops, the hash of the central 96.5% of each image is looked up too. A candidate counts only if
brightness, colors and thumbnails agree: hashes of plain images agree by chance. Where more than 256 images share a quarter,
each is compared with those nearest in hash, then in brightness or pattern, so that the work stays linear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.groups import exact_duplicates
from inat_ft_near_duplicates import matching
from inat_ft_near_duplicates.matching import NOISE, Bools, Floats
from inat_ft_near_duplicates.signatures import ImageSignatures, phash, thumbnail

if TYPE_CHECKING:
    from torch import Tensor

FOUND_COPIES = ("recompressed", "resized", "grayscale", "up to 15% brighter", "cropped by up to 5% at the center")
"""Copies of which at least 95% are found, measured by tests/benchmarks/near_duplicates.py."""
MISSED_COPIES = ("mirrored", "rotated", "much brighter", "cropped by more")

_MAX_BITS, _MAX_BITS_OF_A_CROP = 7, 12
_CROWD = 256
_BLOCK = 1 << 16
_PAIRS, _CROPS = 1 << 12, 1 << 9
"""Pairs of thumbnails compared at a time: 16 MiB as float32."""
_RATIO_TOLERANCE, _RATIO_TOLERANCE_OF_A_CROP = 0.03, 0.06
_MAX_RMS_OF_BLOCKS = 0.35
_MIN_CONTRAST, _MIN_TYPICAL_BLOCK = 16.0, 0.25
"""Smallest contrast, and median of absolute block means, of a thumbnail that is searched for crops: a small subject on a
plain background does not determine a position."""
_MIN_CLIPPED, _CLIPPING_SLACK = 0.02, 2.5
_MAX_TINT_OF_A_CROP = 20.0

Places = NDArray[np.int64]
Check = Callable[[Places, Places], Bools]


class NearDuplicates:
    """The feature `near-duplicates`: near duplicates among `count` images."""

    summary = (
        f"the search for near duplicates finds copies that are {', '.join(FOUND_COPIES)}; "
        f"it misses most others: {', '.join(MISSED_COPIES)}"
    )

    def __init__(self, count: int) -> None:
        self.signatures = ImageSignatures.blank(count)

    def shrink(self, place: int, image: Tensor) -> Tensor:
        """Return the thumbnail of an image uint8 `[3, H, W]`. Safe to call from several threads."""
        self.signatures.ratios[place] = image.shape[2] / image.shape[1]
        return thumbnail(image)

    def update(self, thumbnails: dict[int, Tensor]) -> None:
        """Compute signatures from thumbnails by place, faster in batches."""
        self.signatures.update(list(thumbnails), list(thumbnails.values()))

    def pairs(self, places: Places) -> Places:
        """Return pairs of near duplicates among the images at `places`, as positions in `places`, int64 `[P, 2]`."""
        return near_duplicates(self.signatures.take(places))


def near_duplicates(signatures: ImageSignatures) -> Places:
    """Return pairs of images that show the same picture, int64 `[P, 2]`."""
    rows = zip(signatures.phashes, signatures.thumbs, signatures.colors, signatures.ratios, strict=True)
    joined = (b"".join(part.tobytes() for part in row) for row in rows)
    first = exact_duplicates([hashlib.md5(data, usedforsecurity=False).hexdigest() for data in joined])
    distinct, repeated = np.unique(first), np.flatnonzero(first != np.arange(len(first)))
    unique = signatures.take(distinct)
    described = _describe(unique.thumbs)
    pairs = [np.stack([first[repeated], repeated], 1), distinct[_similar(unique, *described)]]
    _, contrast, _, blocks = described
    textured = (contrast >= _MIN_CONTRAST) & (np.median(np.abs(blocks), axis=1) >= _MIN_TYPICAL_BLOCK)
    cropped = _cropped(unique.take(np.flatnonzero(textured)), *(each[textured] for each in described))
    pairs.append(np.sort(distinct[textured][cropped], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _similar(signatures: ImageSignatures, level: Floats, contrast: Floats, pattern: Floats, blocks: Floats) -> Places:
    """Return pairs whose thumbnails agree cell by cell, `[P, 2]`."""
    phashes, thumbs, colors = signatures.phashes, signatures.thumbs, signatures.colors
    clipped = (thumbs >= matching.CLIPPED).mean((1, 2)) >= _MIN_CLIPPED
    slack = np.where(clipped, _CLIPPING_SLACK, 1.0).astype(np.float32)
    checks: list[Check] = [
        lambda a, b: (a < b) & (np.bitwise_count(phashes[a] ^ phashes[b]) <= _MAX_BITS),
        lambda a, b: np.abs(signatures.ratios[a] / signatures.ratios[b] - 1) <= _RATIO_TOLERANCE,
        lambda a, b: matching.brightness_matches(level[a], level[b], contrast[a], contrast[b]),
        lambda a, b: matching.blocks_may_match(
            blocks[a], blocks[b], contrast[a], contrast[b], np.maximum(slack[a], slack[b])
        ),
        lambda a, b: matching.colors_match(colors[a], colors[b], contrast[a]),
    ]
    candidates = _candidates(phashes, phashes, (level, pattern))
    return _agreeing(candidates, checks, lambda a, b: matching.thumbnails_match(thumbs[a], thumbs[b]), _PAIRS)


def _cropped(signatures: ImageSignatures, level: Floats, contrast: Floats, pattern: Floats, blocks: Floats) -> Places:
    """Return pairs of an image and its crop, `[P, 2]`."""
    phashes, thumbs, colors = signatures.phashes, signatures.thumbs, signatures.colors
    inner, inner_blocks = np.empty_like(phashes), np.empty_like(blocks)
    for start in range(0, len(thumbs), _PAIRS):
        part = slice(start, start + _PAIRS)
        shown = matching.central_region(len(thumbs[part])).resample(thumbs[part])
        inner[part], inner_blocks[part] = phash(shown), _describe(shown)[-1]

    def is_crop(whole: Places, crop: Places) -> Bools:
        region = matching.fit_region(thumbs[whole], thumbs[crop])
        same_colors = matching.colors_match(
            region.resample(colors[whole]), colors[crop], contrast[whole], _MAX_TINT_OF_A_CROP
        )
        return matching.crops_match(region, thumbs[whole], thumbs[crop]) & same_colors

    checks: list[Check] = [
        lambda a, b: np.bitwise_count(inner[a] ^ phashes[b]) <= _MAX_BITS_OF_A_CROP,
        lambda a, b: np.abs(signatures.ratios[a] / signatures.ratios[b] - 1) <= _RATIO_TOLERANCE_OF_A_CROP,
        lambda a, b: matching.brightness_matches(level[a], level[b], contrast[a], contrast[b]),
        lambda a, b: ((inner_blocks[a] - blocks[b]) ** 2).mean(1) <= _MAX_RMS_OF_BLOCKS**2,
    ]
    return _agreeing(_candidates(inner, phashes, (level, pattern)), checks, is_crop, _CROPS)


def _agreeing(candidates: Iterator[tuple[Places, Places]], checks: list[Check], last: Check, size: int) -> Places:
    """Return the candidates that pass all checks, `[P, 2]`; the last check is called with `size` pairs at a time."""
    found = [np.zeros((0, 2), np.int64)]
    for first, second in candidates:
        for start in range(0, len(first), _BLOCK):
            a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
            for check in checks:
                passed = check(a, b)
                a, b = a[passed], b[passed]
            for part in range(0, len(a), size):
                pairs = np.stack([a[part : part + size], b[part : part + size]], 1)
                found.append(pairs[last(pairs[:, 0], pairs[:, 1])])
    return np.concatenate(found)


def _describe(thumbs: NDArray[np.generic]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return mean, standard deviation, a projection of the pattern `[N]`, and normalized 8 x 8 block means `[N, 64]`.

    The last two hardly depend on brightness and contrast.
    """
    level, contrast, pattern = np.empty((3, len(thumbs)), np.float32)
    blocks = np.empty((len(thumbs), 64), np.float32)
    side = thumbs.shape[1]
    weights = np.random.default_rng(0).standard_normal(side**2).astype(np.float32)
    weights -= weights.mean()
    for start in range(0, len(thumbs), _PAIRS):
        part = slice(start, start + _PAIRS)
        cells = thumbs[part].reshape(-1, side**2).astype(np.float32)
        level[part], contrast[part] = cells.mean(1), cells.std(1)
        pattern[part] = cells @ weights / (contrast[part] + NOISE)
        means = cells.reshape(-1, 8, side // 8, 8, side // 8).mean((2, 4)).reshape(-1, 64)
        blocks[part] = (means - level[part, None]) / (contrast[part, None] + NOISE)
    return level, contrast, pattern, blocks


def _candidates(
    queries: NDArray[np.uint64], phashes: NDArray[np.uint64], statistics: Sequence[Floats]
) -> Iterator[tuple[Places, Places]]:
    """Yield pairs of different images, (query, hash), that agree in a quarter of the hash up to one bit."""
    for quarter in range(4):
        shift, mask = np.uint64(16 * quarter), np.uint64(0xFFFF)
        wanted, keys = (((hashes >> shift) & mask).astype(np.int64) for hashes in (queries, phashes))
        order = np.lexsort((statistics[quarter % len(statistics)], phashes, keys))  # similar images are neighbors
        rank, ordered = np.argsort(order), keys[order]
        for bit in (0, *(1 << bit for bit in range(16))):
            start, stop = (
                np.searchsorted(ordered, wanted ^ bit, "left"),
                np.searchsorted(ordered, wanted ^ bit, "right"),
            )
            yield from _pairs(order, start, stop, rank)


def _pairs(order: Places, start: Places, stop: Places, rank: Places) -> Iterator[tuple[Places, Places]]:
    """Yield each image with those in its range of `order`; with the nearest 256 of a longer range."""
    crowded = stop - start > _CROWD
    middle = np.clip(rank, start, stop)
    start = np.where(crowded, np.maximum(start, middle - _CROWD // 2), start)
    stop = np.where(crowded, np.minimum(stop, middle + _CROWD // 2), stop)
    for low in range(0, len(order), _BLOCK):
        images = np.arange(low, min(low + _BLOCK, len(order)))
        counts = stop[images] - start[images]
        first = np.repeat(images, counts)
        offsets = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        second = order[np.repeat(start[images], counts) + offsets]
        different = second != first
        yield first[different], second[different]
