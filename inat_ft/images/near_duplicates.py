"""Copies of one picture: equal files, and the same picture saved again, resized or slightly brightened.

Candidates are pairs whose perceptual hashes differ in at most 7 of 64 bits. Such a pair differs in at most one bit in
at least one of the four 16-bit quarters, so looking up each quarter and its 16 neighbours finds all of them without
comparing every pair. A candidate counts only if the grey thumbnails agree as well, up to brightness and contrast: hashes
of plain pictures agree by chance, thumbnails do not. Where hundreds agree in a quarter, each is held against those that
are nearest in hash, then in brightness or pattern, so that the work stays linear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from inat_ft.images.signatures import ImageSignatures

MAX_BITS = 7
_CROWD = 256
_BLOCK = 1 << 16
_THUMBS = 1 << 12
"""Thumbnails compared at once, 16 MiB as float32."""
_MAX_GAIN = 1.35
_RATIO_TOLERANCE = 0.03
_MAX_TINT = 10.0
_MAX_TINT_OF_A_PART = 16.0
_MAX_CHROMA_OF_GREY = 3.0
_MIN_CONTRAST_OF_GREY = 12.0
"""Standard deviation of a picture that is compared with a greyscale copy: plain pictures agree by chance."""
_FLAT = 0.5
_BLOCKS = 8
_SHARE = 0.12
_WORST = 4.0


def exact_duplicates(hashes: Sequence[str]) -> NDArray[np.int64]:
    """For each image the first one with the same content, `[N]` int64."""
    first: dict[str, int] = {}
    return np.fromiter((first.setdefault(name, place) for place, name in enumerate(hashes)), np.int64, len(hashes))


def near_duplicates(signatures: ImageSignatures) -> NDArray[np.int64]:
    """Pairs of images that show the same picture, `[P, 2]` int64."""
    first, own = _confirmed_pairs(signatures), np.arange(len(signatures.phashes))
    distinct, repeated = np.flatnonzero(first == own), np.flatnonzero(first != own)
    pairs = [np.stack([first[repeated], repeated], 1), distinct[_similar(signatures.take(distinct))]]
    return np.unique(np.concatenate(pairs), axis=0)


def _confirmed_pairs(signatures: ImageSignatures) -> NDArray[np.int64]:
    """For each image the first that looks the same to the last bit, `[N]`: one of them stands for all."""
    rows = zip(signatures.phashes, signatures.thumbs, signatures.colours, signatures.ratios, strict=True)
    looked = (b"".join(part.tobytes() for part in row) for row in rows)
    return exact_duplicates([hashlib.md5(data, usedforsecurity=False).hexdigest() for data in looked])


def _similar(signatures: ImageSignatures) -> NDArray[np.int64]:
    phashes, ratios = signatures.phashes, signatures.ratios
    level, contrast, pattern = _measures(signatures.thumbs)
    coarse = _coarse(signatures.thumbs, level, contrast)
    found = [np.zeros((0, 2), np.int64)]
    for first, second in _candidates(phashes, (level, pattern)):
        for start in range(0, len(first), _BLOCK):
            a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
            alike = np.bitwise_count(phashes[a] ^ phashes[b]) <= MAX_BITS
            alike &= np.abs(ratios[a] / ratios[b] - 1) <= _RATIO_TOLERANCE
            a, b = a[alike], b[alike]
            alike = _brightness_matches(level[a], level[b], contrast[a], contrast[b])
            a, b = a[alike], b[alike]
            alike = _may_be_the_same(coarse[a], coarse[b], contrast[a], contrast[b])
            a, b = a[alike], b[alike]
            alike = _hues_match(signatures.colours[a], signatures.colours[b], contrast[a])
            a, b = a[alike], b[alike]
            for place in range(0, len(a), _THUMBS):
                left, right = a[place : place + _THUMBS], b[place : place + _THUMBS]
                same = thumbnails_match(signatures.thumbs[left], signatures.thumbs[right])
                found.append(np.stack([left[same], right[same]], 1))
    return np.concatenate(found)


def _measures(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean, standard deviation, and a number that hangs on the pattern, hardly on brightness and contrast; `[N]` each."""
    level, contrast, pattern = np.empty((3, len(thumbs)), np.float32)
    weights = np.random.default_rng(0).standard_normal(thumbs[:1].size or 1).astype(np.float32)
    weights -= weights.mean()
    for start in range(0, len(thumbs), _THUMBS):
        part = slice(start, start + _THUMBS)
        cells = thumbs[part].reshape(-1, len(weights)).astype(np.float32)
        level[part], contrast[part] = cells.mean(1), cells.std(1)
        pattern[part] = cells @ weights / (contrast[part] + _FLAT)
    return level, contrast, pattern


def _coarse(
    thumbs: NDArray[np.uint8], level: NDArray[np.float32], contrast: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return thumbnails of 8 x 8 block means, `[N, 64]`, with their mean subtracted and divided by their contrast."""
    side = thumbs.shape[1] // _BLOCKS
    means = np.empty((len(thumbs), _BLOCKS * _BLOCKS), np.float32)
    for start in range(0, len(thumbs), _THUMBS):
        part = thumbs[start : start + _THUMBS].reshape(-1, _BLOCKS, side, _BLOCKS, side)
        means[start : start + _THUMBS] = part.mean((2, 4), dtype=np.float32).reshape(len(part), -1)
    scaled: NDArray[np.float32] = (means - level[:, None]) / (contrast[:, None] + _FLAT)
    return scaled


def _may_be_the_same(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    contrast: NDArray[np.float32],
    other_contrast: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Return which pairs can still pass `same_picture`, from their coarse thumbnails `[P, 64]`, at a fraction of its cost.

    Averaging over blocks cannot increase the root mean square of what remains, so no pair is lost.
    """
    rest = np.sqrt(((first - second) ** 2).mean(1)) * (contrast + _FLAT)
    limit = _FLAT + _SHARE * np.minimum(contrast, other_contrast)
    result: NDArray[np.bool_] = rest <= 1.001 * limit + 0.001  # room for rounding
    return result


def _hues_match(
    first: NDArray[np.uint8], second: NDArray[np.uint8], contrast: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Whether the colours of two pictures, uint8 `[P, 8, 8, 3]`, differ in brightness alone, or one of them is greyscale.

    The plainer the picture, the more exactly on the whole; and each part of it, since a subject may be small.
    """
    a, b = (colours.reshape(len(colours), 64, 3).astype(np.float32) for colours in (first, second))
    gain = (a * b).sum((1, 2)) / np.maximum((b * b).sum((1, 2)), 1)
    rest = a - gain[:, None, None] * b
    hue = np.abs(rest - rest.mean(2, keepdims=True)).max((1, 2))
    on_the_whole = np.abs(rest.mean(1)).max(1) <= np.minimum(_MAX_TINT, 1 + contrast)
    grey_copy = (_is_grey(a) != _is_grey(b)) & (contrast >= _MIN_CONTRAST_OF_GREY)
    result: NDArray[np.bool_] = (on_the_whole & (hue <= _MAX_TINT_OF_A_PART)) | grey_copy
    return result


def _is_grey(colours: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which pictures, `[P, 64, 3]`, have no colour in any part."""
    grey: NDArray[np.bool_] = np.ptp(colours, axis=2).max(1) <= _MAX_CHROMA_OF_GREY
    return grey


def _candidates(
    phashes: NDArray[np.uint64], measures: Sequence[NDArray[np.float32]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (first < second) that agree in a quarter of the hash, up to one bit."""
    for quarter in range(4):
        keys = ((phashes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)).astype(np.int64)
        measure = measures[quarter % len(measures)]
        order = np.lexsort((measure, phashes, keys))  # in crowds of equal keys those most alike stand side by side
        ordered = keys[order]
        for mask in (0, *(1 << bit for bit in range(16))):
            start = np.searchsorted(ordered, keys ^ mask, "left")
            stop = np.searchsorted(ordered, keys ^ mask, "right")
            yield from _pairs(order, start, stop, np.argsort(order))


def _pairs(
    order: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64], rank: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Each image with those in its range of `order`; in a crowd only with its nearest, so that work stays linear."""
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
        ahead = second > first
        yield first[ahead], second[ahead]


def thumbnails_match(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether two thumbnails show the same picture, up to brightness and contrast; both uint8 `[P, 32, 32]`.

    The second is fitted to the first by a gain and an offset; what then remains must be small on the whole and in the
    worst cell, measured by the picture's own contrast: a small subject on a plain ground shows up in its cells.
    """
    a, b = (
        thumbs.reshape(len(thumbs), thumbs.shape[1] * thumbs.shape[2]).astype(np.float32) for thumbs in (first, second)
    )
    light = a.mean(1), b.mean(1), a.std(1), b.std(1)
    a, b = a - light[0][:, None], b - light[1][:, None]
    gain = (light[2] + _FLAT) / (light[3] + _FLAT)
    rest = np.abs(a - gain[:, None] * b)
    limit = _FLAT + _SHARE * np.minimum(light[2], light[3])
    result: NDArray[np.bool_] = (
        (np.sqrt((rest**2).mean(1)) <= limit) & (rest.max(1) <= _WORST * limit) & _brightness_matches(*light)
    )
    return result


def _brightness_matches(
    level: NDArray[np.float32],
    other_level: NDArray[np.float32],
    contrast: NDArray[np.float32],
    other_contrast: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Whether means and standard deviations, `[P]` each, allow two thumbnails to be of one picture."""
    gain = (contrast + _FLAT) / (other_contrast + _FLAT)
    limit = 2 + np.minimum(40, 2 * np.minimum(contrast, other_contrast))  # plain grounds must be equally bright
    result: NDArray[np.bool_] = (np.abs(level - other_level) <= limit) & (np.abs(np.log(gain)) <= np.log(_MAX_GAIN))
    return result


def components(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of `count` images the first of its group, when pairs `[P, 2]` belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    first = np.full(count, count, np.int64)
    np.minimum.at(first, labels, np.arange(count))
    result: NDArray[np.int64] = first[labels]
    return result
