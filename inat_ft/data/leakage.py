"""Images that must not be in a subset: copies of test images in training, and files with several labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.groups import DuplicateGroups, clusters
from inat_ft.data.sources.base import ImageRow, LeftOut, Reason
from inat_ft.data.stratify import TEST, TRAIN, UNASSIGNED, VAL
from inat_ft.errors import DataError

_SAME_FOLDER = 0.5


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
    leaking = _find_leaking(rows, preset, duplicates, policy, findings)
    equal = _with_several_labels(rows, clusters(duplicates.exact))
    findings.exact_groups = _paths(rows, clusters(duplicates.exact))
    findings.near_groups = _paths(rows, clusters(duplicates.near))
    findings.conflicts = _paths(rows, equal)
    findings.near_conflicts = _paths(rows, _with_several_labels(rows, duplicates.pairs.tolist()))
    conflicting = {}
    for group in equal:
        labels = " and ".join(sorted({rows[number].label for number in group}))
        text = f"the same file has the labels {labels}"
        for number in group:
            if preset[number] != TEST:
                conflicting[number] = LeftOut(rows[number].path, text, Reason.LABEL_CONFLICT)
    return (leaking if policy == "drop" else {}) | conflicting, findings


def _find_leaking(
    rows: Sequence[ImageRow],
    preset: NDArray[np.uint8],
    duplicates: DuplicateGroups,
    policy: str,
    findings: Findings,
) -> dict[int, LeftOut]:
    """Return images that are copies of, or in a group with, an image of a given test set, else of a given validation set."""
    level = np.where(preset == UNASSIGNED, TRAIN, preset).astype(np.int64)
    highest, highest_copy = _highest(level, duplicates.group_ids), _highest(level, duplicates.copies)
    leaking: dict[int, LeftOut] = {}
    for code, name, leaked in ((TEST, "test", findings.leaked), (VAL, "validation", findings.leaked_val)):
        is_copy = (level < code) & (highest_copy == code)
        copies = _first_of(duplicates.copies, level == code)
        members = _first_of(duplicates.group_ids, level == code)
        for number in np.flatnonzero((level < code) & (highest == code)).tolist():
            other = (
                copies[int(duplicates.copies[number])]
                if is_copy[number]
                else members[int(duplicates.group_ids[number])]
            )
            leaked.append((rows[number].path, rows[other].path))
            relation, reason = ("a copy of", Reason.COPY) if is_copy[number] else ("in one group with", Reason.GROUP)
            text = f"{relation} a {name} image: {rows[other].path}"
            leaking[number] = LeftOut(rows[number].path, text, reason)
        if policy != "keep" and is_copy.sum() > _SAME_FOLDER * (level < code).sum():
            raise DataError(
                f"{is_copy.sum():,} of {(level < code).sum():,} training images are also in the {name} set: "
                f"{leaked[0][0]} is {leaked[0][1]}",
                f"check whether the {name} folder contains the training images; to use it as it is: --leakage keep",
            )
        if policy == "error" and leaked:
            raise DataError(
                f"{len(leaked):,} training images are copies of {name} images or in a group with them: "
                f"{leaked[0][0]} with {leaked[0][1]}",
                "leave them out of the training set: --leakage drop",
            )
    return leaking


def _paths(rows: Sequence[ImageRow], groups: list[list[int]]) -> list[list[str]]:
    return [[rows[number].path for number in group] for group in groups]


def _with_several_labels(rows: Sequence[ImageRow], groups: list[list[int]]) -> list[list[int]]:
    return [group for group in groups if len({rows[number].label for number in group}) > 1]


def _highest(level: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each image the highest level in its group."""
    highest = np.zeros_like(level)
    np.maximum.at(highest, first, level)
    result: NDArray[np.int64] = highest[first]
    return result


def _first_of(first: NDArray[np.int64], chosen: NDArray[np.bool_]) -> dict[int, int]:
    """Return for each group the first of its chosen members."""
    numbers = np.flatnonzero(chosen)[::-1]
    return dict(zip(first[numbers].tolist(), numbers.tolist(), strict=True))
