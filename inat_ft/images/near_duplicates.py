"""Find exact and near duplicates: equal files, and copies that were recompressed, resized, brightened, or slightly cropped.

Candidates are pairs whose perceptual hashes differ in at most 7 of 64 bits. Such a pair differs in at most one bit in at
least one of the four 16-bit quarters, so looking up each quarter and its 16 neighbors finds all of them without comparing
every pair. To find crops, the hash of the central 96.5 % of each image is looked up too. A candidate counts only if
brightness, colors and thumbnails agree: hashes of plain images agree by chance. Where more than 256 images share a quarter,
each is compared with those nearest in hash, then in brightness or pattern, so that the work stays linear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from inat_ft.images import cropped_copies
from inat_ft.images.matching import (
    CLIPPED,
    Floats,
    blocks_may_match,
    brightness_matches,
    colors_match,
    thumbnails_match,
)
from inat_ft.images.signatures import ImageSignatures, phash

FOUND_COPIES = ("recompressed", "resized", "grayscale", "up to 15 % brighter", "cropped by up to 5 % at the center")
"""Copies of which at least 95 % are found, measured by tests/benchmarks/near_duplicates.py."""
MISSED_COPIES = ("mirrored", "rotated", "much brighter", "cropped by more")

MAX_BITS = 7
_MAX_BITS_OF_A_CROP = 12
_CROWD = 256
_BLOCK = 1 << 16
_PAIRS = 1 << 12
"""Pairs of thumbnails compared at a time: 16 MiB as float32."""
_CROPS = 1 << 9
_RATIO_TOLERANCE = 0.03
_RATIO_TOLERANCE_OF_A_CROP = 0.06
_MAX_RMS_OF_BLOCKS = 0.35
_NOISE = 0.5
_BLOCKS = 8
_MIN_CLIPPED, _CLIPPING_SLACK = 0.02, 2.5
_MAX_TINT_OF_A_CROP = 20.0

Places = NDArray[np.int64]


def exact_duplicates(hashes: Sequence[str]) -> Places:
    """Return for each image the first one with the same content, int64 `[N]`."""
    first: dict[str, int] = {}
    return np.fromiter((first.setdefault(name, place) for place, name in enumerate(hashes)), np.int64, len(hashes))


def near_duplicates(signatures: ImageSignatures) -> Places:
    """Return pairs of images that show the same picture, int64 `[P, 2]`."""
    first, own = _same_signature(signatures), np.arange(len(signatures.phashes))
    distinct, repeated = np.flatnonzero(first == own), np.flatnonzero(first != own)
    unique = signatures.take(distinct)
    pairs = [np.stack([first[repeated], repeated], 1), distinct[_similar(unique)], distinct[_cropped(unique)]]
    return np.unique(np.concatenate(pairs), axis=0)


def _same_signature(signatures: ImageSignatures) -> Places:
    """Return for each image the first with exactly the same signature, `[N]`."""
    rows = zip(signatures.phashes, signatures.thumbs, signatures.colours, signatures.ratios, strict=True)
    joined = (b"".join(part.tobytes() for part in row) for row in rows)
    return exact_duplicates([hashlib.md5(data, usedforsecurity=False).hexdigest() for data in joined])


def _similar(signatures: ImageSignatures) -> Places:
    """Return pairs whose thumbnails agree cell by cell, `[P, 2]`."""
    phashes, thumbs, colors = signatures.phashes, signatures.thumbs, signatures.colours
    level, contrast, pattern = _statistics(thumbs)
    blocks = _block_means(thumbs, level, contrast)
    clipped = (thumbs >= CLIPPED).mean((1, 2))
    slack = np.where(clipped >= _MIN_CLIPPED, _CLIPPING_SLACK, 1.0).astype(np.float32)
    found = [np.zeros((0, 2), np.int64)]
    for first, second in _candidates(phashes, phashes, (level, pattern)):
        for start in range(0, len(first), _BLOCK):
            a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
            ordered = a < b
            a, b = a[ordered], b[ordered]
            close = np.bitwise_count(phashes[a] ^ phashes[b]) <= MAX_BITS
            close &= np.abs(signatures.ratios[a] / signatures.ratios[b] - 1) <= _RATIO_TOLERANCE
            a, b = a[close], b[close]
            close = brightness_matches(level[a], level[b], contrast[a], contrast[b])
            a, b = a[close], b[close]
            close = blocks_may_match(blocks[a], blocks[b], contrast[a], contrast[b], np.maximum(slack[a], slack[b]))
            a, b = a[close], b[close]
            close = colors_match(colors[a], colors[b], contrast[a])
            a, b = a[close], b[close]
            for part in range(0, len(a), _PAIRS):
                left, right = a[part : part + _PAIRS], b[part : part + _PAIRS]
                same = thumbnails_match(thumbs[left], thumbs[right])
                found.append(np.stack([left[same], right[same]], 1))
    return np.concatenate(found)


def _cropped(signatures: ImageSignatures) -> Places:
    """Return pairs of an image and its crop, in ascending order, `[P, 2]`."""
    level, contrast, pattern = _statistics(signatures.thumbs)
    blocks = _block_means(signatures.thumbs, level, contrast)
    typical = np.median(np.abs(blocks), axis=1)
    textured = np.flatnonzero((contrast >= cropped_copies.MIN_CONTRAST) & (typical >= cropped_copies.MIN_TYPICAL_BLOCK))
    some, level, contrast, pattern = signatures.take(textured), level[textured], contrast[textured], pattern[textured]
    inner, inner_blocks = _central_signatures(some.thumbs)
    blocks = blocks[textured]
    found = [np.zeros((0, 2), np.int64)]
    for first, second in _candidates(inner, some.phashes, (level, pattern)):
        for start in range(0, len(first), _BLOCK):
            a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
            close = np.bitwise_count(inner[a] ^ some.phashes[b]) <= _MAX_BITS_OF_A_CROP
            close &= np.abs(some.ratios[a] / some.ratios[b] - 1) <= _RATIO_TOLERANCE_OF_A_CROP
            a, b = a[close], b[close]
            close = brightness_matches(level[a], level[b], contrast[a], contrast[b])
            a, b = a[close], b[close]
            close = ((inner_blocks[a] - blocks[b]) ** 2).mean(1) <= _MAX_RMS_OF_BLOCKS**2
            a, b = a[close], b[close]
            for part in range(0, len(a), _CROPS):
                whole, crop = a[part : part + _CROPS], b[part : part + _CROPS]
                same = _is_crop(some, whole, crop, contrast[whole])
                found.append(np.stack([whole[same], crop[same]], 1))
    return np.sort(textured[np.concatenate(found)], axis=1)


def _is_crop(signatures: ImageSignatures, whole: Places, crop: Places, contrast: Floats) -> NDArray[np.bool_]:
    region = cropped_copies.fit_region(signatures.thumbs[whole], signatures.thumbs[crop])
    images, crops = signatures.thumbs[whole], signatures.thumbs[crop]
    same = region.is_crop() & cropped_copies.agrees(region, images, crops)
    return same & colors_match(
        region.resample(signatures.colours[whole]), signatures.colours[crop], contrast, _MAX_TINT_OF_A_CROP
    )


def _central_signatures(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], Floats]:
    """Return hashes `[N]` and normalized block means `[N, 64]` of the central region of a typical crop."""
    hashes, blocks = np.empty(len(thumbs), np.uint64), np.empty((len(thumbs), _BLOCKS**2), np.float32)
    for start in range(0, len(thumbs), _PAIRS):
        part = slice(start, start + _PAIRS)
        inner = cropped_copies.central_region(len(thumbs[part])).resample(thumbs[part])
        hashes[part] = phash(inner)
        blocks[part] = _block_means(inner, inner.mean((1, 2)), inner.std((1, 2)))
    return hashes, blocks


def _statistics(thumbs: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """Return mean, standard deviation, and a projection of the pattern that hardly depends on these two; `[N]` each."""
    level, contrast, pattern = np.empty((3, len(thumbs)), np.float32)
    weights = np.random.default_rng(0).standard_normal(thumbs[:1].size or 1).astype(np.float32)
    weights -= weights.mean()
    for start in range(0, len(thumbs), _PAIRS):
        part = slice(start, start + _PAIRS)
        cells = thumbs[part].reshape(-1, len(weights)).astype(np.float32)
        level[part], contrast[part] = cells.mean(1), cells.std(1)
        pattern[part] = cells @ weights / (contrast[part] + _NOISE)
    return level, contrast, pattern


def _block_means(thumbs: NDArray[np.generic], level: Floats, contrast: Floats) -> Floats:
    """Return 8 x 8 block means of thumbnails, `[N, 64]`, with the mean subtracted and divided by the contrast."""
    side = thumbs.shape[1] // _BLOCKS
    means = np.empty((len(thumbs), _BLOCKS * _BLOCKS), np.float32)
    for start in range(0, len(thumbs), _PAIRS):
        part = thumbs[start : start + _PAIRS].reshape(-1, _BLOCKS, side, _BLOCKS, side)
        means[start : start + _PAIRS] = part.mean((2, 4), dtype=np.float32).reshape(len(part), -1)
    scaled: Floats = (means - level[:, None]) / (contrast[:, None] + _NOISE)
    return scaled


def _candidates(
    queries: NDArray[np.uint64], phashes: NDArray[np.uint64], statistics: Sequence[Floats]
) -> Iterator[tuple[Places, Places]]:
    """Yield pairs of different images, (query, hash), that agree in a quarter of the hash up to one bit."""
    for quarter in range(4):
        wanted, keys = (
            ((hashes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)).astype(np.int64) for hashes in (queries, phashes)
        )
        order = np.lexsort((statistics[quarter % len(statistics)], phashes, keys))  # similar images are neighbors
        rank, ordered = np.argsort(order), keys[order]
        for mask in (0, *(1 << bit for bit in range(16))):
            start = np.searchsorted(ordered, wanted ^ mask, "left")
            stop = np.searchsorted(ordered, wanted ^ mask, "right")
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


def components(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each of `count` images the first of its group, given pairs `[P, 2]` that belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    first = np.full(count, count, np.int64)
    np.minimum.at(first, labels, np.arange(count))
    result: NDArray[np.int64] = first[labels]
    return result
