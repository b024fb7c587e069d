"""Split images into train, validation and test, and write the manifest.

The subset of an image depends on the seed and on the paths of the images only: not on the order of a directory, the platform
or the time.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.classes import check_classes
from inat_ft.data.groups import assign_groups, group_images
from inat_ft.data.leakage import Findings, find_leakage
from inat_ft.data.manifest import Manifest, check_output, write_manifest
from inat_ft.data.sources.base import Exclusions, ImageList, ImageRow, LeftOut, ReadOptions, Reason
from inat_ft.data.sources.find import find_images
from inat_ft.data.split_result import SplitResult
from inat_ft.data.stratify import TEST, TRAIN, UNASSIGNED, VAL, SplitFractions, stratified_group_split
from inat_ft.errors import DataError, UsageError
from inat_ft.images.decode import MAX_PIXELS
from inat_ft.images.opening import ProblemKind
from inat_ft.images.scan import Scan, scan
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
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
    out = out or default_manifest(location)
    _check_arguments(location, out, options)
    exclude = Exclusions(options.exclude)
    images = find_images(location, options.source, ReadOptions(exclude, out, options.classes_from))
    is_default = options.test_fraction is None
    options = replace(options, test_fraction=_test_fraction(images, options.test_fraction))
    assign_groups(images, options.group_by, log)
    warnings = check_classes(images, options.test_fraction or 0.0)
    warnings += [f"--exclude {pattern!r} does not match any file or folder" for pattern in exclude.unused()]
    for warning in warnings:
        warn(warning)
    with progress("scanning") as update:
        workers = options.workers or num_cores()
        scanned = scan(images.root, images.paths, options.max_pixels, workers, options.near, update)
    _require_usable(images, _unusable(images, scanned), options.strict)
    manifest, findings = make_manifest(images, scanned, options, out)
    is_new = write_manifest(manifest, force)
    return SplitResult(manifest, findings, is_new, tuple(warnings), is_default and bool(options.test_fraction))


def default_manifest(location: Path) -> Path:
    """Return `splits/NAME.csv` for a folder or file NAME; a link keeps its own name."""
    name = Path(os.path.abspath(location))
    return Path("splits") / f"{name.stem if location.is_file() else name.name or 'images'}.csv"


def _check_arguments(location: Path, out: Path, options: SplitOptions) -> None:
    check_output(out)
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
        LeftOut(row.path, str(why), Reason.TOO_LARGE if why.kind is ProblemKind.TOO_LARGE else Reason.UNUSABLE)
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
        raise DataError(
            f"{len(bad):,} files are not usable images: {files}", "remove --strict to continue without them"
        )


def make_manifest(images: ImageList, scanned: Scan, options: SplitOptions, path: Path) -> tuple[Manifest, Findings]:
    """Split scanned images. Raises DataError if a class has too few images, or if train and test are the same."""
    for row, sha256 in zip(images.rows, scanned.hashes, strict=True):
        row.sha256 = sha256
    usable = np.flatnonzero([not why for why in scanned.problems])
    rows = [images.rows[number] for number in usable.tolist()]
    unusable = _unusable(images, scanned)
    signatures = scanned.signatures.take(usable) if options.near else None
    duplicates = group_images([row.sha256 for row in rows], [row.group for row in rows], signatures)
    preset = np.fromiter((_CODES[row.subset] for row in rows), np.uint8, len(rows))
    dropped, findings = find_leakage(rows, preset, duplicates, options.leakage)
    keep = np.setdiff1d(np.arange(len(rows)), np.fromiter(dropped, np.int64, len(dropped)))
    kept = [rows[number] for number in keep.tolist()]
    check_classes(images, options.test_fraction or 0.0, [*unusable, *dropped.values()])
    left_out = sorted([*images.left_out, *unusable, *dropped.values()])
    manifest = _assign(images, kept, preset[keep], duplicates.group_ids[keep], options, path, left_out)
    if (manifest.subsets == TEST).any():
        findings.classes_without_test = [name for name, row in manifest.counts().items() if not row["test"]]
    return manifest, findings


def _assign(
    images: ImageList,
    rows: list[ImageRow],
    preset: NDArray[np.uint8],
    units: NDArray[np.int64],
    options: SplitOptions,
    path: Path,
    left_out: list[LeftOut],
) -> Manifest:
    paths = [row.path for row in rows]
    classes = tuple(sorted(images.classes | {row.label for row in rows}))
    index = {name: number for number, name in enumerate(classes)}
    labels = np.fromiter((index[row.label] for row in rows), np.int64, len(rows))
    fractions = SplitFractions(options.val_fraction, options.test_fraction or 0.0)
    subsets = stratified_group_split(paths, labels, preset, units, classes, fractions, options.seed)
    sizes = Counter(units.tolist())
    names: dict[int, str] = {}
    for unit, name in zip(units.tolist(), paths, strict=True):
        names.setdefault(unit, name)
    return Manifest(
        path,
        images.root.resolve(),
        classes,
        paths,
        labels,
        subsets,
        [row.sha256 for row in rows],
        [names[unit] if sizes[unit] > 1 else "" for unit in units.tolist()],
        left_out,
        options.seed,
        _header(images, options),
    )


def _header(images: ImageList, options: SplitOptions) -> dict[str, Any]:
    """Return what the manifest records about its making. Paths outside the data set are not recorded."""
    group_by = options.group_by
    header: dict[str, Any] = {
        "layout": images.layout,
        "val_fraction": options.val_fraction,
        "test_fraction": options.test_fraction or 0.0,
        "group_by": Path(group_by).name if group_by and group_by.lower().endswith(".csv") else group_by,
        "leakage": options.leakage,
        "near_copies": options.near,
    }
    if images.listing:
        header["csv"] = images.listing
    if options.exclude:
        header["exclude"] = Exclusions(options.exclude).patterns
    if images.source:
        header["source"] = images.source
    return header
