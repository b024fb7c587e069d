"""Scanned images become a manifest: what belongs together found, what must not be there left out, the rest divided.

Who goes where hangs on the seed and the images' paths alone: not on the order of a directory, the platform or the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.groups import DuplicateGroups, clusters, group_images
from inat_ft.data.manifest import Manifest
from inat_ft.data.sources.base import Files, LeftOut, Reason
from inat_ft.data.stratify import TEST, TRAIN, UNASSIGNED, VAL, SplitFractions, stratified_group_split
from inat_ft.errors import DataError, UsageError
from inat_ft.images.opening import ProblemKind
from inat_ft.images.scan import Scan
from inat_ft.text import escape_unprintable

_CODES = {"train": TRAIN, "val": VAL, "test": TEST, "": UNASSIGNED}
_SAME_FOLDER = 0.5

DEFAULT_TEST_FRACTION = 0.2

_Gone = dict[int, tuple[str, Reason]]
"""Images that are left out, by number, with the reason for a person and its kind."""


@dataclass(frozen=True)
class Options:
    """How to split. Fractions are of each class's images to be split, in 0..1; leakage: drop, keep or error."""

    val_fraction: float = 0.2
    test_fraction: float = 0.0
    seed: int = 0
    leakage: str = "drop"
    near: bool = True
    group_by: str | None = None


@dataclass
class Findings:
    """What was noticed on the way, for the person who splits; images by their paths.

    leaked: (image outside the given test set, its copy in it); leaked_val: the same for a given validation set;
    conflicts: equal files under several labels; near_conflicts: near copies under several labels; untested: classes
    without test images, where there is a test set.
    """

    exact_groups: list[list[str]] = field(default_factory=list)
    near_groups: list[list[str]] = field(default_factory=list)
    leaked: list[tuple[str, str]] = field(default_factory=list)
    leaked_val: list[tuple[str, str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)
    near_conflicts: list[list[str]] = field(default_factory=list)
    classes_without_test: list[str] = field(default_factory=list)


def make_manifest(
    files: Files, scanned: Scan, options: Options, path: Path, groups: Sequence[str]
) -> tuple[Manifest, Findings]:
    """Split scanned files.

    groups: for each file a name that files which belong together share, "" for none. Raises DataError when a class has
    too few images or when train and test are the same, UsageError when the fractions cannot be had.
    """
    check_fractions(files, options)
    usable = np.flatnonzero([not why for why in scanned.problems])
    _require_classes(files, scanned, usable)
    pool = _Pool(files, scanned, usable)
    signatures = scanned.signatures.take(usable) if options.near else None
    duplicates = group_images(pool.hashes, [groups[place] for place in usable.tolist()], signatures)
    findings = Findings(pool.named(clusters(duplicates.exact)), pool.named(clusters(duplicates.near)))
    left_out = [*files.left_out, *_unusable(files, scanned)]
    gone = _leaking(pool, duplicates, options.leakage, findings) | _conflicting(pool, duplicates, findings)
    left_out += [LeftOut(pool.paths[place], *reason) for place, reason in sorted(gone.items())]
    keep = np.setdiff1d(np.arange(len(usable)), np.fromiter(gone, np.int64, len(gone)))
    _require_left(pool, keep, gone)
    return _manifest(files, pool, keep, duplicates.group_ids[keep], options, path, sorted(left_out), findings), findings


def default_test_fraction(files: Files) -> float:
    """Return the fraction to reserve for the test by default: none where the source has training or test images itself."""
    return 0.0 if {"train", "test"} & set(files.subsets) else DEFAULT_TEST_FRACTION


def check_fractions(files: Files, options: Options) -> None:
    """Raise UsageError when these files cannot be divided into these fractions, whatever they contain."""
    if options.test_fraction and "test" in files.subsets:
        raise UsageError(f"{files.root} has a test set of its own", "leave out --test-fraction")
    if options.test_fraction and "" not in files.subsets:
        raise UsageError(f"{files.root} has no images left to divide: all have a subset", "leave out --test-fraction")


def _unusable(files: Files, scanned: Scan) -> list[LeftOut]:
    return [
        LeftOut(path, str(why), Reason.TOO_LARGE if why.kind is ProblemKind.TOO_LARGE else Reason.UNUSABLE)
        for path, why in zip(files.paths, scanned.problems, strict=True)
        if why
    ]


def _require_classes(files: Files, scanned: Scan, usable: NDArray[np.int64]) -> None:
    missing = sorted(files.classes - {files.labels[place] for place in usable.tolist()})
    if missing:
        of_class = zip(files.paths, files.labels, scanned.problems, strict=True)
        bad = [(path, str(why)) for path, label, why in of_class if label == missing[0]]
        bad += [(left.path, left.text) for left in files.left_out if missing[0] in left.path.split("/")]
        why = f": {bad[0][0]} ({bad[0][1]})" if bad else ""
        raise DataError(
            f"class '{escape_unprintable(missing[0])}' has no usable image{why}",
            "add images, or leave the class out with --exclude",
        )


def _require_left(pool: _Pool, keep: NDArray[np.int64], gone: _Gone) -> None:
    left = {pool.labels[place] for place in keep.tolist()}
    for place, (reason, _) in sorted(gone.items()):
        if pool.labels[place] not in left:
            raise DataError(
                f"class '{escape_unprintable(pool.labels[place])}' has no image left: "
                f"{pool.paths[place]} is left out ({reason})",
                "give each picture one label, add others, or leave the class out with --exclude",
            )


class _Pool:
    """The usable files."""

    def __init__(self, files: Files, scanned: Scan, usable: NDArray[np.int64]) -> None:
        places = usable.tolist()
        self.paths = [files.paths[place] for place in places]
        self.labels = [files.labels[place] for place in places]
        self.hashes = [scanned.hashes[place] for place in places]
        self.preset = np.fromiter((_CODES[files.subsets[place]] for place in places), np.uint8, len(places))

    def named(self, groups: list[list[int]]) -> list[list[str]]:
        """Paths of images given by number."""
        return [[self.paths[place] for place in group] for group in groups]

    def disagreeing(self, groups: list[list[int]]) -> list[list[int]]:
        """The groups whose members have several labels."""
        return [group for group in groups if len({self.labels[place] for place in group}) > 1]


def _conflicting(pool: _Pool, duplicates: DuplicateGroups, findings: Findings) -> _Gone:
    """Equal files under several labels, outside the test set: nobody knows which label is right."""
    equal = pool.disagreeing(clusters(duplicates.exact))
    findings.conflicts = pool.named(equal)
    pairs = pool.disagreeing(duplicates.pairs.tolist())
    findings.near_conflicts = pool.named(pairs)
    return {
        place: (
            f"label conflict: the same file is {' and '.join(sorted({pool.labels[each] for each in group}))}",
            Reason.LABEL_CONFLICT,
        )
        for group in equal
        for place in group
        if pool.preset[place] != TEST
    }


def _leaking(pool: _Pool, duplicates: DuplicateGroups, policy: str, findings: Findings) -> _Gone:
    """Images that are copies of, or in one group with, images of a given set that they must not know.

    The test set comes before the validation set, and that before the training set.
    """
    level = np.where(pool.preset == UNASSIGNED, TRAIN, pool.preset).astype(np.int64)
    of_unit, of_copies = _highest(level, duplicates.group_ids), _highest(level, duplicates.copies)
    gone: _Gone = {}
    for code, name, leaked in ((TEST, "test", findings.leaked), (VAL, "validation", findings.leaked_val)):
        is_copy = (level < code) & (of_copies == code)
        partners = _first_of(duplicates.copies, level == code)
        members = _first_of(duplicates.group_ids, level == code)
        for place in np.flatnonzero((level < code) & (of_unit == code)).tolist():
            other = (
                partners[int(duplicates.copies[place])] if is_copy[place] else members[int(duplicates.group_ids[place])]
            )
            leaked.append((pool.paths[place], pool.paths[other]))
            what, reason = ("a copy of", Reason.COPY) if is_copy[place] else ("in one group with", Reason.GROUP)
            gone[place] = f"{what} a {name} image: {pool.paths[other]}", reason
        if policy != "keep" and is_copy.sum() > _SAME_FOLDER * (level < code).sum():
            raise DataError(
                f"{is_copy.sum():,} of {(level < code).sum():,} training images are in the {name} set as well: "
                f"{leaked[0][0]} is {leaked[0][1]}",
                f"the {name} folder seems to point at the training images; if it is right all the same: --leakage keep",
            )
        if policy == "error" and leaked:
            raise DataError(
                f"{len(leaked):,} training images are copies of {name} images, or in one group with them: "
                f"{leaked[0][0]} with {leaked[0][1]}",
                "leave them out of training: --leakage drop",
            )
    return gone if policy == "drop" else {}


def _highest(level: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image the highest level among its kin."""
    highest = np.zeros_like(level)
    np.maximum.at(highest, first, level)
    result: NDArray[np.int64] = highest[first]
    return result


def _first_of(first: NDArray[np.int64], chosen: NDArray[np.bool_]) -> dict[int, int]:
    """For each kin the first of its chosen members."""
    places = np.flatnonzero(chosen)[::-1]
    return dict(zip(first[places].tolist(), places.tolist(), strict=True))


def _manifest(
    files: Files,
    pool: _Pool,
    keep: NDArray[np.int64],
    units: NDArray[np.int64],
    options: Options,
    path: Path,
    left_out: list[LeftOut],
    findings: Findings,
) -> Manifest:
    places = keep.tolist()
    paths = [pool.paths[place] for place in places]
    classes = tuple(sorted(files.classes | {pool.labels[place] for place in places}))
    index = {name: number for number, name in enumerate(classes)}
    labels = np.fromiter((index[pool.labels[place]] for place in places), np.int64, len(places))
    shares = SplitFractions(options.val_fraction, options.test_fraction)
    subsets = stratified_group_split(paths, labels, pool.preset[keep], units, classes, shares, options.seed)
    sizes = Counter(units.tolist())
    names: dict[int, str] = {}
    for unit, name in zip(units.tolist(), paths, strict=True):
        names.setdefault(unit, name)
    manifest = Manifest(
        path,
        files.root.resolve(),
        classes,
        paths,
        labels,
        subsets,
        [pool.hashes[place] for place in places],
        [names[unit] if sizes[unit] > 1 else "" for unit in units.tolist()],
        left_out,
        options.seed,
        _made(files, options),
    )
    if (subsets == TEST).any():
        findings.classes_without_test = [name for name, row in manifest.counts().items() if not row["test"]]
    return manifest


def _made(files: Files, options: Options) -> dict[str, Any]:
    group_by = options.group_by
    return {
        "layout": files.layout,
        "val_fraction": options.val_fraction,
        "test_fraction": options.test_fraction,
        "group_by": Path(group_by).name if group_by and group_by.lower().endswith(".csv") else group_by,
        "leakage": options.leakage,
        "near_copies": options.near,
        **({"csv": files.csv} if files.csv else {}),
        **({"exclude": files.exclude.patterns} if files.exclude.patterns else {}),
    }
