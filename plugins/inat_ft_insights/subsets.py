"""Nested subsets of the training images: stratified by class, with groups kept together."""

from __future__ import annotations

import numpy as np

from inat_ft.errors import DataError
from inat_ft_insights.features import Ints

_SMALLEST = 1 / 16
_FEWEST_PER_CLASS = 2.0


def nested_subsets(labels: Ints, groups: Ints, draws: int, sizes: int, seed: int) -> Ints:
    """Return the smallest subset that contains each image, `[draws, N]`: subset s has the images with a value of at most s.

    labels: `[N]`; groups: `[N]`, equal for images that stay together. Each draw is a random order of the images of each
    class, with those of a group next to each other. A group is in a subset if one of its images is. The last subset has all
    images. Raises DataError if there are fewer than two different subsets.
    """
    counts, rng = subset_counts(np.bincount(labels), sizes), np.random.default_rng(seed)
    found = np.empty((draws, len(labels)), np.int64)
    for draw in range(draws):
        keys = rng.permutation(int(groups.max()) + 1)[groups]
        order = np.lexsort((keys, labels))
        ordered = labels[order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        first = np.full(int(groups.max()) + 1, len(counts))
        np.minimum.at(first, groups[order], (rank >= counts[:, ordered]).sum(0))
        found[draw] = first[groups]
    totals = num_images(found)
    kept = np.flatnonzero(np.append((totals[:, :-1] < totals[:, 1:]).all(0), True))
    if len(kept) < 2:
        raise DataError(
            f"a learning curve needs more training images than {len(labels):,} of {len(np.unique(labels)):,} classes",
            "add images until each class has about 4 for training, in several groups",
        )
    return np.searchsorted(kept, found)


def num_images(subsets: Ints) -> Ints:
    """Return the number of images of each subset, `[draws, S]`. subsets: as `nested_subsets` returns them."""
    size = int(subsets.max()) + 1
    return np.stack([np.bincount(each, minlength=size).cumsum() for each in subsets])


def subset_counts(counts: Ints, sizes: int) -> Ints:
    """Return the number of images of each class in each subset, `[S, C]`, ascending by a constant factor.

    The smallest has a 16th of the images, or two per class if that is more. Each class has at least one image.
    """
    smallest = np.clip(_FEWEST_PER_CLASS / counts.mean(), _SMALLEST, 1.0)
    fractions = np.exp2(np.log2(smallest) * np.linspace(1, 0, sizes))
    found = np.maximum(np.round(fractions[:, None] * counts), np.minimum(counts, 1)).astype(np.int64)
    totals = found.sum(1)
    distinct: Ints = found[np.append(totals[:-1] < totals[1:], True)]
    return distinct
