"""A subset for each image: an exact share of every class, drawn by seed and path, groups in one piece.

Single images make the count of a class exact. Groups of images are drawn first, up to the share that they have of their
classes, so that a subset is no more crowded with them than the whole is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.manifest import SUBSETS
from inat_ft.errors import DataError
from inat_ft.text import escape_unprintable, pluralize

TRAIN, VAL, TEST = range(len(SUBSETS))
UNASSIGNED = 255

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SplitFractions:
    """Fractions of each class's images, in 0..1: of all that are to be split for the test, of the rest to validate."""

    val: float
    test: float


def stratified_group_split(
    paths: Sequence[str],
    labels: _Ints,
    preset: NDArray[np.uint8],
    units: _Ints,
    classes: Sequence[str],
    shares: SplitFractions,
    seed: int,
) -> NDArray[np.uint8]:
    """The subset of each image, uint8 `[N]`.

    labels: `[N]`, into classes; given: TRAIN, VAL, TEST, or UNDECIDED; units: `[N]`, equal for images that must stay
    together. What is given stays; only where nothing is undecided and no validation set is given, training images are
    divided. Raises DataError naming a class that has too few images.
    """
    subsets = preset.copy()
    if not np.isin(subsets, (VAL, UNASSIGNED)).any():
        subsets[subsets == TRAIN] = UNASSIGNED
    subsets[(subsets == UNASSIGNED) & np.isin(units, units[subsets == TRAIN])] = TRAIN
    totals = np.bincount(labels[subsets == UNASSIGNED], minlength=len(classes))
    draw = _Allocation(subsets, labels, units, _shuffled(paths, seed), len(classes))
    wanted = [(code, share) for code, share in ((TEST, shares.test), (VAL, shares.val)) if not (subsets == code).any()]
    wanted = [(code, share) for code, share in wanted if share]
    has_train = np.bincount(labels[subsets == TRAIN], minlength=len(classes)) > 0
    _require(totals, len(wanted) + 1 - has_train, classes)
    for number, (code, share) in enumerate(wanted):
        draw.allocate(code, share, leave=len(wanted) - number - has_train)
    subsets[subsets == UNASSIGNED] = TRAIN
    _require_all(subsets, labels, classes, [TRAIN, VAL])
    return subsets


def _require(totals: _Ints, parts: _Ints, classes: Sequence[str]) -> None:
    few = np.flatnonzero((totals > 0) & (totals < parts))
    if len(few):
        raise DataError(
            f"class '{escape_unprintable(classes[few[0]])}' has only {pluralize(int(totals[few[0]]), 'image')} to split: "
            f"at least {parts[few[0]]} are needed",
            "add images, leave the class out with --exclude, or reserve no test set: --test-fraction 0",
        )


def _require_all(subsets: NDArray[np.uint8], labels: _Ints, classes: Sequence[str], codes: Sequence[int]) -> None:
    for code in codes:
        counts = np.bincount(labels[subsets == code], minlength=len(classes))
        if not counts.all():
            name = escape_unprintable(classes[int(np.flatnonzero(counts == 0)[0])])
            raise DataError(
                f"class '{name}' has too few images, or too few groups of them, for {SUBSETS[code]}: none would be left",
                "add images, leave the class out with --exclude, choose other fractions (--test-fraction 0 reserves no test "
                "set), or keep near copies apart with --no-near",
            )


def _shuffled(paths: Sequence[str], seed: int) -> _Ints:
    """A random order that hangs on seed and paths alone."""
    keys = [hashlib.sha256(f"{seed}\0{path}".encode()).digest() for path in paths]
    return np.fromiter(sorted(range(len(paths)), key=keys.__getitem__), np.int64, len(paths))


@dataclass
class _Group:
    places: list[int]
    counts: Counter[int]
    """Images by class."""


class _Allocation:
    """Drawing from the undecided images, in a random order, in place."""

    def __init__(self, subsets: NDArray[np.uint8], labels: _Ints, units: _Ints, order: _Ints, classes: int) -> None:
        self.subsets, self.labels, self.units, self.order, self.classes = subsets, labels, units, order, classes

    def allocate(self, code: int, share: float, leave: _Ints) -> None:
        """Give a share of what is undecided of every class to a subset; leave: `[C]`, images that must remain so."""
        place = self.order[self.subsets[self.order] == UNASSIGNED]
        spare = np.maximum(self._target_count(place) - leave, 0)
        need = np.minimum(np.maximum(np.floor(self._target_count(place) * share + 0.5).astype(np.int64), 1), spare)
        alone = np.bincount(self.units[place], minlength=len(self.units))[self.units[place]] == 1
        singles, groups = place[alone], self._groups(place[~alone])
        if groups:
            in_groups = np.floor(self._target_count(place[~alone]) * share + 0.5).astype(np.int64)
            got = self._allocate_groups(groups, code, np.minimum(in_groups, need), spare)
            need, spare = need - got, spare - got
        held = np.zeros_like(need)  # groups that remain, by class
        for group in groups:
            if self.subsets[group.places[0]] == UNASSIGNED:
                held[list(group.counts)] += 1
        free = np.maximum(self._target_count(singles) + held - leave, 0)  # a group cannot serve two subsets
        got = self._allocate_singles(singles, code, np.minimum(need, free))
        need, spare = need - got, spare - got
        if groups and (need > 0).any():
            got = self._allocate_groups(groups, code, need, spare)
            self._allocate_smallest(groups, code, spare - got)

    def _target_count(self, places: _Ints) -> _Ints:
        return np.bincount(self.labels[places], minlength=self.classes)

    def _groups(self, places: _Ints) -> list[_Group]:
        members: dict[int, list[int]] = {}
        for place, unit in zip(places.tolist(), self.units[places].tolist(), strict=True):
            members.setdefault(unit, []).append(place)
        return [_Group(group, Counter(self.labels[group].tolist())) for group in members.values()]

    def _allocate_singles(self, places: _Ints, code: int, need: _Ints) -> _Ints:
        labels = self.labels[places]
        by_class = np.argsort(labels, kind="stable")
        counts = self._target_count(places)
        rank = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = places[by_class[rank < need[labels[by_class]]]]
        self.subsets[chosen] = code
        return self._target_count(chosen)

    def _allocate_groups(self, groups: list[_Group], code: int, need: _Ints, spare: _Ints) -> _Ints:
        """First the groups that fit into what is needed, then those that still bring the counts nearer to it."""
        wanted, left = need.tolist(), spare.tolist()
        got = np.zeros_like(need)

        def fits(counts: Counter[int]) -> bool:
            return all(wanted[label] >= number for label, number in counts.items())

        def helps(counts: Counter[int]) -> bool:
            change = sum(abs(wanted[label] - number) - abs(wanted[label]) for label, number in counts.items())
            return bool(change < 0)

        rules: tuple[Callable[[Counter[int]], bool], ...] = (fits, helps)
        for good in rules:
            for group in groups:
                free = self.subsets[group.places[0]] == UNASSIGNED
                if free and good(group.counts) and all(left[label] >= n for label, n in group.counts.items()):
                    self.subsets[group.places] = code
                    for label, number in group.counts.items():
                        wanted[label] -= number
                        left[label] -= number
                        got[label] += number
        return got

    def _allocate_smallest(self, groups: list[_Group], code: int, spare: _Ints) -> None:
        """Give each class that has nothing in the subset yet its smallest group."""
        left = spare.tolist()
        empty = np.flatnonzero(self._target_count(np.flatnonzero(self.subsets == code)) == 0)
        for label in empty.tolist():
            able = [
                group
                for group in groups
                if label in group.counts
                and self.subsets[group.places[0]] == UNASSIGNED
                and all(left[other] >= number for other, number in group.counts.items())
            ]
            if able:
                group = min(able, key=lambda each: len(each.places))
                self.subsets[group.places] = code
                for other, number in group.counts.items():
                    left[other] -= number
