"""Dividing images into train, validation and test: stratified, repeatable, with copies kept together.

Who goes where hangs on the seed and the images' paths alone: not on the order of a directory, the platform or the time.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.duplicates import components, exact_copies, near_copies
from inat_ft.data.manifest import SUBSETS, Manifest
from inat_ft.data.scan import Scan
from inat_ft.data.files import Files
from inat_ft.errors import DataError

_TRAIN, _VAL, _TEST = range(3)
_UNDECIDED = 255
_SAME_FOLDER = 0.5


@dataclass(frozen=True)
class Options:
    """How to split. Fractions are of each class, in 0..1; leakage: drop, keep or error."""

    val_fraction: float = 0.2
    test_fraction: float = 0.0
    seed: int = 0
    leakage: str = "drop"
    near: bool = True
    group_by: str | None = None


@dataclass
class Findings:
    """What was noticed on the way, for the person who splits. Pairs and groups are of paths."""

    exact_groups: list[list[str]] = field(default_factory=list)
    near_groups: list[list[str]] = field(default_factory=list)
    leaked: list[tuple[str, str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)


def make_manifest(
    files: Files, scanned: Scan, options: Options, path: Path, groups: Sequence[str]
) -> tuple[Manifest, Findings]:
    """Split scanned files.

    groups: for each file a name that files which belong together share, "" for none. Raises DataError when a class has
    too few images or when train and test are the same.
    """
    left_out = [*files.left_out, *((p, why) for p, why in zip(files.paths, scanned.problems, strict=True) if why)]
    usable = np.flatnonzero([not why for why in scanned.problems])
    findings = Findings()
    pool = _Pool(files, scanned, usable, groups)
    units = pool.units(options.near, findings)
    gone = pool.conflicting(findings, left_out) | pool.leaking(units, options.leakage, findings, left_out)
    keep = np.flatnonzero(~gone)
    classes = tuple(sorted({pool.labels[place] for place in keep.tolist()}))
    subsets = _assign(pool, keep, units, classes, options)
    index = {name: number for number, name in enumerate(classes)}
    sizes = Counter(units[keep].tolist())
    manifest = Manifest(
        path,
        files.root.resolve(),
        classes,
        [pool.paths[place] for place in keep.tolist()],
        np.fromiter((index[pool.labels[place]] for place in keep.tolist()), np.int64, len(keep)),
        subsets,
        [pool.hashes[place] for place in keep.tolist()],
        [pool.paths[unit] if sizes[unit] > 1 else "" for unit in units[keep].tolist()],
        sorted(left_out),
        options.seed,
        _made(files, options),
    )
    return manifest, findings


def _made(files: Files, options: Options) -> dict[str, Any]:
    return {
        "layout": files.layout,
        "val_fraction": options.val_fraction,
        "test_fraction": options.test_fraction,
        "group_by": options.group_by,
        "leakage": options.leakage,
        "near_copies": options.near,
    }


class _Pool:
    """The usable files, and which of them belong together."""

    def __init__(self, files: Files, scanned: Scan, usable: NDArray[np.int64], groups: Sequence[str]) -> None:
        places = usable.tolist()
        self.paths = [files.paths[place] for place in places]
        self.labels = [files.labels[place] for place in places]
        self.given = [files.subsets[place] for place in places]
        self.hashes = [scanned.hashes[place] for place in places]
        self.groups = [groups[place] for place in places]
        self.looks = scanned.looks
        self.usable = usable
        self.is_test = np.fromiter((given == "test" for given in self.given), bool, len(places))

    def units(self, near: bool, findings: Findings) -> NDArray[np.int64]:
        """For each image the first of those that it must stay with: copies, and members of its group."""
        count = len(self.paths)
        own = np.arange(count)
        first = exact_copies(self.hashes)
        findings.exact_groups = self._named(first)
        unique = np.flatnonzero(first == own)
        pairs = np.zeros((0, 2), np.int64)
        if near and len(unique) > 1:
            pairs = unique[near_copies(self.looks.of(self.usable[unique]))]
            findings.near_groups = self._named(components(count, pairs))
        by_name: dict[str, int] = {}
        named = np.fromiter((by_name.setdefault(g, p) if g else p for p, g in enumerate(self.groups)), np.int64, count)
        edges = (pairs, np.stack([first, own], 1)[first != own], np.stack([named, own], 1)[named != own])
        return components(count, np.concatenate(edges))

    def _named(self, first: NDArray[np.int64]) -> list[list[str]]:
        members: dict[int, list[str]] = {}
        shared = np.bincount(first, minlength=len(first))[first] > 1
        for place in np.flatnonzero(shared).tolist():
            members.setdefault(int(first[place]), []).append(self.paths[place])
        return list(members.values())

    def conflicting(self, findings: Findings, left_out: list[tuple[str, str]]) -> NDArray[np.bool_]:
        """Equal files under different labels, outside the test set: nobody knows which label is right."""
        labels: dict[str, set[str]] = {}
        for name, label, test in zip(self.hashes, self.labels, self.is_test.tolist(), strict=True):
            if not test:
                labels.setdefault(name, set()).add(label)
        bad = {name for name, found in labels.items() if len(found) > 1}
        gone = np.zeros(len(self.paths), bool)
        members: dict[str, list[str]] = {}
        for place, name in enumerate(self.hashes):
            if name in bad and not self.is_test[place]:
                gone[place] = True
                members.setdefault(name, []).append(self.paths[place])
                left_out.append(
                    (self.paths[place], f"the same file has the labels {' and '.join(sorted(labels[name]))}")
                )
        findings.conflicts = list(members.values())
        return gone

    def leaking(
        self, units: NDArray[np.int64], policy: str, findings: Findings, left_out: list[tuple[str, str]]
    ) -> NDArray[np.bool_]:
        """Images outside the given test set that are copies of, or belong with, images in it."""
        tested = np.unique(units[self.is_test])
        leaks = np.isin(units, tested) & ~self.is_test
        partner = {
            int(unit): place
            for place, unit in zip(*(a[self.is_test] for a in (np.arange(len(units)), units)), strict=True)
        }
        for place in np.flatnonzero(leaks).tolist():
            findings.leaked.append((self.paths[place], self.paths[partner[int(units[place])]]))
        if leaks.sum() > _SAME_FOLDER * max(1, (~self.is_test).sum()):
            raise DataError(
                f"{leaks.sum():,} of {(~self.is_test).sum():,} training images are in the test set as well: "
                f"{findings.leaked[0][0]} is {findings.leaked[0][1]}",
                "the test folder seems to point at the training images",
            )
        if policy == "error" and findings.leaked:
            raise DataError(
                f"{len(findings.leaked)} training images are copies of test images: {findings.leaked[0][0]} is "
                f"{findings.leaked[0][1]}",
                "leave them out of training: --leakage drop",
            )
        if policy == "keep":
            return np.zeros(len(units), bool)
        left_out.extend((path, f"a copy of the test image {test}") for path, test in findings.leaked)
        result: NDArray[np.bool_] = leaks
        return result


def _assign(
    pool: _Pool, keep: NDArray[np.int64], units: NDArray[np.int64], classes: tuple[str, ...], options: Options
) -> NDArray[np.uint8]:
    """A subset for each kept image, uint8 `[K]`."""
    index = {name: number for number, name in enumerate(classes)}
    labels = np.fromiter((index[pool.labels[place]] for place in keep.tolist()), np.int64, len(keep))
    given = {"train": _TRAIN, "val": _VAL, "test": _TEST, "": _UNDECIDED}
    subsets = np.fromiter((given[pool.given[place]] for place in keep.tolist()), np.uint8, len(keep))
    units = units[keep]
    order = _shuffled([pool.paths[place] for place in keep.tolist()], options.seed)
    if options.test_fraction and not (subsets == _TEST).any():
        _take(subsets, _TEST, options.test_fraction, labels, units, order, classes)
    if not (subsets == _VAL).any():
        _take(subsets, _VAL, options.val_fraction, labels, units, order, classes)
    subsets[subsets == _UNDECIDED] = _TRAIN
    _require_train(subsets, labels, classes)
    return subsets


def _shuffled(paths: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A random order that hangs on seed and paths alone."""
    keys = [hashlib.sha256(f"{seed}\0{path}".encode()).digest() for path in paths]
    return np.fromiter(sorted(range(len(paths)), key=keys.__getitem__), np.int64, len(paths))


def _take(
    subsets: NDArray[np.uint8],
    code: int,
    fraction: float,
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    order: NDArray[np.int64],
    classes: tuple[str, ...],
) -> None:
    """Give a fraction of each class's undecided images to a subset, in place; members of a unit go together.

    In random order each unit goes in that still fits what every class needs, so single images make the count exact.
    """
    open_ = subsets == _UNDECIDED
    totals = np.bincount(labels[open_], minlength=len(classes))
    few = np.flatnonzero((totals > 0) & (totals < 2))
    if len(few):
        name = classes[few[0]]
        raise DataError(
            f"class '{name}' has only {totals[few[0]]} image to split: at least 2 are needed",
            "add images, or remove the class folder",
        )
    need = np.clip(np.floor(totals * fraction + 0.5).astype(np.int64), 1, np.maximum(totals - 1, 0))
    members: dict[int, list[int]] = {}
    for place in order[open_[order]].tolist():
        members.setdefault(int(units[place]), []).append(place)
    needs = need.tolist()
    codes = labels.tolist()
    for unit in members.values():
        if len(unit) == 1:
            label = codes[unit[0]]
            if needs[label] > 0:
                needs[label] -= 1
                subsets[unit[0]] = code
            continue
        wanted = Counter(codes[place] for place in unit)
        if all(needs[label] >= count for label, count in wanted.items()):
            for label, count in wanted.items():
                needs[label] -= count
            subsets[unit] = code


def _require_train(subsets: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    for code in (_TRAIN, _VAL):
        counts = np.bincount(labels[subsets == code], minlength=len(classes))
        if not counts.all():
            name = classes[int(np.flatnonzero(counts == 0)[0])]
            raise DataError(
                f"class '{name}' has too few images, or too few groups of them, for {SUBSETS[code]}: none would be left",
                "add images, remove the class folder, or choose other fractions",
            )


def group_names(files: Files, group_by: str | None) -> list[str]:
    """A group name for each file: what a regular expression finds in its name, or what a CSV of path,group says.

    Of an expression with a group the first group counts, otherwise the whole match; no match means no group.
    """
    if group_by is None:
        return [""] * len(files.paths)
    if Path(group_by).suffix.lower() == ".csv":
        return _groups_from_csv(files, Path(group_by))
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DataError(f"--group-by {group_by!r} is no regular expression: {error}") from None
    matches = [pattern.search(path.rsplit("/", 1)[-1]) for path in files.paths]
    if not any(matches):
        raise DataError(f"--group-by {group_by!r} matches none of the file names, such as {files.paths[0]}")
    return [(match.group(1) if match.re.groups else match.group()) or "" if match else "" for match in matches]


def _groups_from_csv(files: Files, file: Path) -> list[str]:
    import csv

    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            known = {row["path"]: row["group"] or "" for row in csv.DictReader(lines)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DataError(f"--group-by: cannot read {file} as a CSV with the columns path and group: {error}") from None
    if not any(path in known for path in files.paths):
        raise DataError(f"--group-by: {file} names none of the images, such as {files.paths[0]}")
    return [known.get(path, "") for path in files.paths]
