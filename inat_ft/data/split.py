"""Split images into train, validation and test, and write the manifest.

The subset of an image depends on the seed and on the paths of the images only: not on the order of a directory, the platform
or the time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inat_ft.data.classes import check_classes
from inat_ft.data.groups import Findings, find_leakage, group_images
from inat_ft.data.manifest import SUBSETS, Manifest, write_manifest
from inat_ft.data.sources.base import Exclusions, ImageList, LeftOut, ReadOptions, Reason, find_images
from inat_ft.data.stratify import TEST, TRAIN, UNASSIGNED, VAL, stratified_group_split
from inat_ft.errors import DataError, UsageError
from inat_ft.images.decode import MAX_PIXELS, TooLargeError
from inat_ft.images.scan import Scan, scan
from inat_ft.paths import check_writable
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft.registry import FEATURES, get
from inat_ft.tables import Table, Tabular
from inat_ft.threads import num_cores

DEFAULT_TEST_FRACTION = 0.2

_CODES = {"train": TRAIN, "val": VAL, "test": TEST, "": UNASSIGNED}
_SHOWN = 5


@dataclass(frozen=True)
class SplitOptions:
    """How to split images; the options of `inat-ft split`.

    val_fraction, test_fraction: of each class's images without a given subset, in 0..1; a test_fraction of None reserves
    DEFAULT_TEST_FRACTION unless the data set has given training or test images. leakage: drop, keep or error, for images that
    are copies of given test images. source: name of the data source; None for the first that recognizes the location.
    """

    val_fraction: float = 0.2
    test_fraction: float | None = None
    seed: int = 0
    leakage: str = "drop"
    near: bool = True
    group_by: str | None = None
    source: str | None = None
    classes_from: str | None = None
    exclude: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    strict: bool = False
    workers: int = 0
    """Decoding threads; 0 for one per core."""
    corrections: Path | None = None
    """CSV with the columns path and verdict."""
    pack: tuple[str, ...] = ()
    """Sizes at which images are cached, such as 224:crop."""
    cache_dir: Path | None = None


class Imbalance(NamedTuple):
    """The classes with the most and the fewest training images."""

    most: str
    fewest: str
    ratio: float
    """Training images of `most` divided by those of `fewest`, 1 or more."""


@dataclass(frozen=True)
class SplitResult(Tabular):
    """A split: its manifest, and the duplicates and label conflicts that were found.

    `train(split=result)` trains on it. is_new: False if the same manifest existed; warnings: messages about classes that are
    probably not as intended; default_test_set: whether a test set was reserved because the data has none and no fraction was
    given.
    """

    manifest: Manifest
    findings: Findings
    is_new: bool
    warnings: Sequence[str] = ()
    default_test_set: bool = False

    def __fspath__(self) -> str:
        return os.fspath(self.manifest.path)

    @property
    def path(self) -> Path:
        """Path of the manifest."""
        return self.manifest.path

    @property
    def imbalance(self) -> Imbalance:
        """The class imbalance of the training images."""
        train = {name: row["train"] for name, row in self.manifest.counts().items()}
        most, fewest = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
        return Imbalance(most, fewest, train[most] / train[fewest])

    @property
    def table(self) -> Table:
        """Images by class (one row each, then the total) and subset."""
        rows = [(name, *row.values(), sum(row.values())) for name, row in self.manifest.counts().items()]
        totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
        return Table({"class": "", **dict.fromkeys((*SUBSETS, "all"), ",")}, [*rows, ("total", *totals)])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft split --json` prints it."""
        manifest, findings = self.manifest, self.findings
        return {
            "manifest": manifest.path.as_posix(),
            "fingerprint": manifest.fingerprint,
            "seed": manifest.seed,
            "layout": manifest.made["layout"],
            "test_fraction": manifest.made["test_fraction"],
            "classes": list(manifest.classes),
            "counts": manifest.counts(),
            "imbalance": self.imbalance.ratio,
            "left_out": [{"path": left.path, "reason": left.text} for left in manifest.left_out],
            "exact_copies": findings.exact_groups,
            "near_copies": findings.near_groups,
            "leaked": [{"train": train, "test": test} for train, test in findings.leaked],
            "leaked_to_val": [{"train": train, "val": val} for train, val in findings.leaked_val],
            "corrections": manifest.made.get("corrections", {}),
            "label_conflicts": findings.conflicts,
            "near_label_conflicts": findings.near_conflicts,
            "classes_without_test": findings.classes_without_test,
        }

    def __str__(self) -> str:
        return f"{self.table}\nmanifest: {self.path}"


def split_images(
    location: Path,
    out: Path | None = None,
    options: SplitOptions | None = None,
    *,
    force: bool = False,
    log: Log = ignore_log,
    warn: Log = ignore_log,
    progress: ProgressBar = no_progress,
) -> SplitResult:
    """Split the images of a location and write the manifest, by default to `splits/NAME.csv`.

    force: replace a different manifest; log and warn: called with messages for the user. Raises UsageError or DataError.
    """
    options = options or SplitOptions()
    if out is None:
        name = Path(os.path.abspath(location))  # a link keeps its own name
        out = Path("splits") / f"{name.stem if location.is_file() else name.name or 'images'}.csv"
    _check_arguments(location, out, options)
    exclude = Exclusions(options.exclude)
    images = find_images(location, options.source, ReadOptions(exclude, out, options.classes_from))
    is_default = options.test_fraction is None
    options = replace(options, test_fraction=_test_fraction(images, options.test_fraction))
    if options.group_by is not None:
        get(FEATURES, "group-by").load()(images, options.group_by, log)
    correct = options.corrections and get(FEATURES, "corrections").load()(options.corrections, images.classes)
    warnings = check_classes(images, options.test_fraction or 0.0)
    unused = [pattern for pattern in exclude.patterns if pattern not in exclude.found.values()]
    warnings += [f"--exclude {pattern!r} does not match any file or folder" for pattern in unused]
    for warning in warnings:
        warn(warning)
    pack, count = None, len(images.rows)
    if options.pack:
        pack = get(FEATURES, "pack").load()(options.pack, options.cache_dir, count, log, warn)
    with progress("scanning") as update, pack or nullcontext():
        workers = options.workers or num_cores()
        scanned = scan(images.root, images.paths, options.max_pixels, workers, options.near, update, pack and pack.add)
    _require_usable(images, _unusable(images, scanned), options.strict)
    manifest, findings = make_manifest(images, scanned, options, out)
    if correct:
        manifest = correct(manifest, log)
    is_new = write_manifest(manifest, force)
    return SplitResult(manifest, findings, is_new, tuple(warnings), is_default and bool(options.test_fraction))


def _check_arguments(location: Path, out: Path, options: SplitOptions) -> None:
    check_writable(out, option="--out")
    if location.is_file() and out.exists() and out.samefile(location):
        raise UsageError(f"--out {out} would replace the list of images", "choose another file with --out")
    if options.val_fraction + (options.test_fraction or 0) >= 1:
        raise UsageError(
            f"--val-fraction {options.val_fraction} and --test-fraction {options.test_fraction} leave no training images",
            "lower one of them",
        )


def _test_fraction(images: ImageList, fraction: float | None) -> float:
    subsets = {row.subset for row in images.rows}
    if fraction is None:
        return 0.0 if {"train", "test"} & subsets else DEFAULT_TEST_FRACTION
    if fraction and "test" in subsets:
        raise UsageError(f"{images.root} already has a test set", "remove --test-fraction")
    if fraction and "" not in subsets:
        raise UsageError(f"every image of {images.root} has a given subset", "remove --test-fraction")
    return fraction


def _unusable(images: ImageList, scanned: Scan) -> list[LeftOut]:
    return [
        LeftOut(row.path, str(why), Reason.TOO_LARGE if isinstance(why, TooLargeError) else Reason.UNUSABLE)
        for row, why in zip(images.rows, scanned.problems, strict=True)
        if why
    ]


def _require_usable(images: ImageList, unusable: list[LeftOut], strict: bool) -> None:
    if len(unusable) == len(images.rows):
        too_large = any(left.reason is Reason.TOO_LARGE for left in unusable)
        raise DataError(
            f"none of the {len(unusable):,} files in {images.root / images.listing} is a usable image: "
            f"{unusable[0].path} ({unusable[0].text})",
            "allow larger images: --max-pixels" if too_large else "check that the folder contains images",
        )
    bad = [*unusable, *(left for left in images.left_out if left.reason is not Reason.EXCLUDED)]
    if strict and bad:
        files = "\n".join(f"{left.path} ({left.text})" for left in bad[:_SHOWN]) + "\n..." * (len(bad) > _SHOWN)
        hint = "remove --strict to continue without them"
        raise DataError(f"{len(bad):,} files are not usable images: {files}", hint)


def make_manifest(images: ImageList, scanned: Scan, options: SplitOptions, path: Path) -> tuple[Manifest, Findings]:
    """Split scanned images. Raises DataError if a class has too few images, or if train and test are the same."""
    for row, sha256 in zip(images.rows, scanned.hashes, strict=True):
        row.sha256 = sha256
    usable = np.flatnonzero([not why for why in scanned.problems])
    rows = [images.rows[number] for number in usable.tolist()]
    near = scanned.near
    find_near = (lambda places: near.pairs(usable[places])) if near else None
    duplicates = group_images([row.sha256 for row in rows], [row.group for row in rows], find_near)
    preset = np.array([_CODES[row.subset] for row in rows], np.uint8)
    dropped, findings = find_leakage(rows, preset, duplicates, options.leakage)
    left_out = [*_unusable(images, scanned), *dropped.values()]
    check_classes(images, options.test_fraction or 0.0, left_out)
    keep = np.delete(np.arange(len(rows)), list(dropped))
    rows = [rows[number] for number in keep.tolist()]
    paths, units = [row.path for row in rows], duplicates.group_ids[keep].tolist()
    sizes, first = Counter(units), dict(zip(reversed(units), reversed(paths), strict=True))
    classes = tuple(sorted(images.classes))
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[row.label] for row in rows], np.int64)
    fractions = {TEST: options.test_fraction or 0.0, VAL: options.val_fraction}
    manifest = Manifest(
        path,
        images.root.resolve(),
        classes,
        paths,
        labels,
        stratified_group_split(paths, labels, preset[keep], np.array(units), classes, fractions, options.seed),
        [row.sha256 for row in rows],
        [first[unit] if sizes[unit] > 1 else "" for unit in units],
        sorted([*images.left_out, *left_out]),
        options.seed,
        _header(images, options),
    )
    if (manifest.subsets == TEST).any():
        findings.classes_without_test = [name for name, row in manifest.counts().items() if not row["test"]]
    return manifest, findings


def _header(images: ImageList, options: SplitOptions) -> dict[str, Any]:
    """Return what the manifest records about its making. Paths outside the data set are not recorded."""
    group_by = options.group_by
    optional = {"csv": images.listing, "exclude": Exclusions(options.exclude).patterns, "source": images.source}
    return {
        "layout": images.layout,
        "val_fraction": options.val_fraction,
        "test_fraction": options.test_fraction or 0.0,
        "group_by": Path(group_by).name if group_by and group_by.lower().endswith(".csv") else group_by,
        "leakage": options.leakage,
        "near_copies": options.near,
        **{key: value for key, value in optional.items() if value},
    }
