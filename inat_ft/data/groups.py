"""Images that must stay in one subset, such as duplicates, and images that must not be in a subset because of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.sources.base import ImageRow, LeftOut, Reason
from inat_ft.data.stratify import TEST, TRAIN, UNASSIGNED, VAL
from inat_ft.errors import DataError

_SAME_FOLDER = 0.5

Places = NDArray[np.int64]


@dataclass(frozen=True)
class DuplicateGroups:
    """The group of each image: int64 `[N]`, the number of the first image in it.

    exact: equal files; near: different files of the same picture; copies: either; group_ids: copies and named groups;
    pairs: `[P, 2]`, pairs of near duplicates.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]
    copies: NDArray[np.int64]
    group_ids: NDArray[np.int64]
    pairs: NDArray[np.int64]


def exact_duplicates(hashes: Sequence[str]) -> Places:
    """Return for each image the first one with the same content, int64 `[N]`."""
    first: dict[str, int] = {}
    return np.fromiter((first.setdefault(name, place) for place, name in enumerate(hashes)), np.int64, len(hashes))


def group_images(
    hashes: Sequence[str], groups: Sequence[str], find_near: Callable[[Places], Places] | None
) -> DuplicateGroups:
    """Return the groups of images with these SHA-256 hashes and group names ("" for none).

    find_near: return pairs of near duplicates among images, `[P, 2]`; None to search for none.
    """
    count = len(hashes)
    numbers = np.arange(count)
    exact = exact_duplicates(hashes)
    unique = np.flatnonzero(exact == numbers)
    pairs = np.zeros((0, 2), np.int64)
    if find_near and len(unique) > 1:
        pairs = unique[find_near(unique)]
    first: dict[str, int] = {}
    named = np.fromiter((first.setdefault(name, n) if name else n for n, name in enumerate(groups)), np.int64, count)
    copies = np.concatenate([pairs, np.stack([exact, numbers], 1)])
    in_groups = np.concatenate([copies, np.stack([named, numbers], 1)])
    near, either, all_groups = (components(count, each) for each in (pairs, copies, in_groups))
    return DuplicateGroups(exact, near, either, all_groups, pairs)


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


@dataclass
class Findings:
    """Duplicates and label conflicts; images by their paths.

    leaked: (image outside the given test set, its copy in it); leaked_val: the same for a given validation set; conflicts:
    equal files with several labels; near_conflicts: near duplicates with several labels; classes_without_test: classes
    without test images, if there is a test set.
    """

    exact_groups: list[list[str]] = field(default_factory=list)
    near_groups: list[list[str]] = field(default_factory=list)
    leaked: list[tuple[str, str]] = field(default_factory=list)
    leaked_val: list[tuple[str, str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)
    near_conflicts: list[list[str]] = field(default_factory=list)
    classes_without_test: list[str] = field(default_factory=list)


def find_leakage(
    rows: Sequence[ImageRow], preset: NDArray[np.uint8], duplicates: DuplicateGroups, policy: str
) -> tuple[dict[int, LeftOut], Findings]:
    """Return the images to leave out, by row number, and what was found.

    preset: uint8 `[N]`, the given subset of each image or UNASSIGNED; policy: drop, keep or error. Raises DataError if most
    training images are in another subset, or if there is leakage and the policy is error.
    """
    findings = Findings()
    left_out = _find_leaking(rows, preset, duplicates, policy, findings)
    exact, near = _clusters(duplicates.exact), _clusters(duplicates.near)
    findings.exact_groups, findings.near_groups = _paths(rows, exact), _paths(rows, near)
    conflicts = [group for group in exact if len(_labels(rows, group)) > 1]
    findings.conflicts = _paths(rows, conflicts)
    pairs = duplicates.pairs.tolist()
    findings.near_conflicts = _paths(rows, [pair for pair in pairs if len(_labels(rows, pair)) > 1])
    for group in conflicts:
        text = f"the same file has the labels {' and '.join(sorted(_labels(rows, group)))}"
        for number in group:
            if preset[number] != TEST:
                left_out[number] = LeftOut(rows[number].path, text, Reason.LABEL_CONFLICT)
    return left_out, findings


def _find_leaking(
    rows: Sequence[ImageRow], preset: NDArray[np.uint8], duplicates: DuplicateGroups, policy: str, findings: Findings
) -> dict[int, LeftOut]:
    """Return images that are copies of, or in a group with, an image of a given test set, else of a given validation set."""
    level = np.where(preset == UNASSIGNED, TRAIN, preset)
    leaking: dict[int, LeftOut] = {}
    with_higher = np.zeros(len(rows), bool)
    for code, name, leaked in ((TEST, "test", findings.leaked), (VAL, "validation", findings.leaked_val)):
        copies, members = (_first_of(first, level == code) for first in (duplicates.copies, duplicates.group_ids))
        below = level < code
        is_member = below & (members < len(rows)) & ~with_higher
        is_copy = is_member & (copies < len(rows))
        with_higher |= members < len(rows)
        for number in np.flatnonzero(is_member).tolist():
            path, other = rows[number].path, rows[copies[number] if is_copy[number] else members[number]].path
            leaked.append((path, other))
            relation, reason = ("a copy of", Reason.COPY) if is_copy[number] else ("in one group with", Reason.GROUP)
            leaking[number] = LeftOut(path, f"{relation} a {name} image: {other}", reason)
        if policy != "keep" and is_copy.sum() > _SAME_FOLDER * below.sum():
            raise DataError(
                f"{is_copy.sum():,} of {below.sum():,} training images are also in the {name} set: "
                f"{leaked[0][0]} is {leaked[0][1]}",
                f"check whether the {name} folder contains the training images; to use it as it is: --leakage keep",
            )
        if policy == "error" and leaked:
            raise DataError(
                f"{len(leaked):,} training images are copies of {name} images or in a group with them: "
                f"{leaked[0][0]} with {leaked[0][1]}",
                "leave them out of the training set: --leakage drop",
            )
    return leaking if policy == "drop" else {}


def _clusters(first: NDArray[np.int64]) -> list[list[int]]:
    """Return the members of each group of two or more images, from the first member of each image's group."""
    members: dict[int, list[int]] = {}
    for number in np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1).tolist():
        members.setdefault(int(first[number]), []).append(number)
    return list(members.values())


def _paths(rows: Sequence[ImageRow], groups: list[list[int]]) -> list[list[str]]:
    return [[rows[number].path for number in group] for group in groups]


def _labels(rows: Sequence[ImageRow], group: list[int]) -> set[str]:
    return {rows[number].label for number in group}


def _first_of(first: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each image the first chosen member of its group; N for none."""
    found = np.full(len(first), len(first), np.int64)
    np.minimum.at(found, first[chosen], np.flatnonzero(chosen))
    result: NDArray[np.int64] = found[first]
    return result
