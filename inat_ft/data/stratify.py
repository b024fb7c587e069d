"""Assign a subset to each image: stratified by class, exact to one image, with groups kept together.

Single images make the count of each class exact. Groups are assigned first, up to their share of the class, so that a subset
contains no larger proportion of grouped images than the data set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.manifest import SUBSETS
from inat_ft.errors import DataError
from inat_ft.text import escape_unprintable

TRAIN, VAL, TEST = range(len(SUBSETS))
UNASSIGNED = 255

_Ints = NDArray[np.int64]


def stratified_group_split(
    paths: Sequence[str],
    labels: _Ints,
    preset: NDArray[np.uint8],
    units: _Ints,
    classes: Sequence[str],
    fractions: dict[int, float],
    seed: int,
) -> NDArray[np.uint8]:
    """Return the subset of each image, uint8 `[N]`.

    labels: `[N]`, indices of classes; preset: TRAIN, VAL or TEST, which are kept, or UNASSIGNED; units: `[N]`, equal for
    images that must stay together; fractions: of each class, in 0..1, for TEST of all images to be split, and then for VAL of
    those that remain. If there is no validation set and nothing is unassigned, training images are divided. Raises DataError,
    which names a class that would have no training or validation images.
    """
    subsets = preset.copy()
    if not np.isin(subsets, (VAL, UNASSIGNED)).any():
        subsets[subsets == TRAIN] = UNASSIGNED
    subsets[(subsets == UNASSIGNED) & np.isin(units, units[subsets == TRAIN])] = TRAIN
    has_train = np.bincount(labels[subsets == TRAIN], minlength=len(classes)) > 0
    wanted = [code for code, fraction in fractions.items() if fraction and not (subsets == code).any()]
    allocation = _Allocation(subsets, labels, units, random_order(paths, seed), len(classes))
    for number, code in enumerate(wanted):
        allocation.allocate(code, fractions[code], reserved=len(wanted) - number - has_train)
    subsets[subsets == UNASSIGNED] = TRAIN
    for code in (TRAIN, VAL):
        counts = np.bincount(labels[subsets == code], minlength=len(classes))
        if not counts.all():
            label = int(counts.argmin())
            images, groups = np.sum(labels == label), len(np.unique(units[labels == label]))
            raise DataError(
                f"class '{escape_unprintable(classes[label])}' has too few images or groups ({images:,} in {groups:,}): "
                f"none would remain for {SUBSETS[code]}",
                "add images, leave the class out with --exclude, reserve no test set with --test-fraction 0, "
                "or do not group near duplicates: --no-near",
            )
    return subsets


def random_order(paths: Sequence[str], seed: int) -> _Ints:
    """Return a permutation of the images that depends on their paths and the seed alone, `[N]`."""
    keys = [hashlib.sha256(f"{seed}\0{path}".encode()).digest() for path in paths]
    return np.fromiter(sorted(range(len(paths)), key=keys.__getitem__), np.int64, len(paths))


@dataclass
class _Group:
    rows: list[int]
    counts: Counter[int]
    """Images by class."""

    def fits(self, limits: Sequence[int]) -> bool:
        return all(limits[label] >= count for label, count in self.counts.items())

    def improves(self, wanted: Sequence[int]) -> bool:
        """Return whether the counts come closer to what is wanted, summed over classes."""
        return sum(abs(wanted[label] - count) - abs(wanted[label]) for label, count in self.counts.items()) < 0


@dataclass
class _Allocation:
    """Assign unassigned images to one subset after the other, in a random order. Changes `subsets` in place."""

    subsets: NDArray[np.uint8]
    labels: _Ints
    units: _Ints
    order: _Ints
    classes: int

    def allocate(self, code: int, fraction: float, reserved: _Ints) -> None:
        """Assign a fraction of the unassigned images of each class; reserved: `[C]`, images that must remain unassigned."""
        rows = self.order[self.subsets[self.order] == UNASSIGNED]
        spare = np.maximum(self._count(rows) - reserved, 0)
        need = np.minimum(np.maximum(self._share(rows, fraction), 1), spare)
        alone = np.bincount(self.units[rows], minlength=len(self.units))[self.units[rows]] == 1
        singles, groups = rows[alone], self._groups(rows[~alone])
        got = self._allocate_groups(groups, code, np.minimum(self._share(rows[~alone], fraction), need), spare)
        need, spare = need - got, spare - got
        remaining_groups = np.zeros_like(need)
        for group in self._unassigned(groups):
            remaining_groups[list(group.counts)] += 1
        free = np.maximum(self._count(singles) + remaining_groups - reserved, 0)  # a group serves one subset only
        got = self._allocate_singles(singles, code, np.minimum(need, free))
        need, spare = need - got, spare - got
        got = self._allocate_groups(groups, code, need, spare)
        self._allocate_smallest(groups, code, spare - got)

    def _count(self, rows: _Ints) -> _Ints:
        return np.bincount(self.labels[rows], minlength=self.classes)

    def _share(self, rows: _Ints, fraction: float) -> _Ints:
        share: _Ints = np.floor(self._count(rows) * fraction + 0.5).astype(np.int64)
        return share

    def _groups(self, rows: _Ints) -> list[_Group]:
        members: dict[int, list[int]] = {}
        for row, unit in zip(rows.tolist(), self.units[rows].tolist(), strict=True):
            members.setdefault(unit, []).append(row)
        return [_Group(group, Counter(self.labels[group].tolist())) for group in members.values()]

    def _unassigned(self, groups: list[_Group]) -> list[_Group]:
        return [group for group in groups if self.subsets[group.rows[0]] == UNASSIGNED]

    def _allocate_singles(self, rows: _Ints, code: int, need: _Ints) -> _Ints:
        labels = self.labels[rows]
        by_class = np.argsort(labels, kind="stable")
        counts = self._count(rows)
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = rows[by_class[rank < need[labels[by_class]]]]
        self.subsets[chosen] = code
        return self._count(chosen)

    def _allocate_groups(self, groups: list[_Group], code: int, need: _Ints, spare: _Ints) -> _Ints:
        """Assign first the groups that fit into what is needed, then those that bring the counts closer to it."""
        wanted, left = need.tolist(), spare.tolist()
        for rule in (_Group.fits, _Group.improves):
            for group in self._unassigned(groups):
                if rule(group, wanted) and group.fits(left):
                    self._assign(group, code, wanted, left)
        return need - np.array(wanted, np.int64)

    def _allocate_smallest(self, groups: list[_Group], code: int, spare: _Ints) -> None:
        """Assign its smallest group to each class that has no image in the subset yet."""
        left = spare.tolist()
        for label in np.flatnonzero(self._count(np.flatnonzero(self.subsets == code)) == 0).tolist():
            fitting = [group for group in self._unassigned(groups) if label in group.counts and group.fits(left)]
            if fitting:
                self._assign(min(fitting, key=lambda each: len(each.rows)), code, left)

    def _assign(self, group: _Group, code: int, *remaining: list[int]) -> None:
        self.subsets[group.rows] = code
        for label, count in group.counts.items():
            for counts in remaining:
                counts[label] -= count
