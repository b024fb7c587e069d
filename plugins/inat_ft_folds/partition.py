"""Divide the training and validation images into folds: stratified by class, with groups kept together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.manifest import Manifest
from inat_ft.data.stratify import TEST, TRAIN, VAL, random_order
from inat_ft.errors import DataError, UsageError
from inat_ft.text import escape_unprintable

Ints = NDArray[np.int64]


def assign_folds(labels: Ints, units: Ints, order: Ints, num_folds: int) -> Ints:
    """Return the fold of each image, int64 `[N]`, 0 to num_folds - 1.

    labels: `[N]`; units: `[N]`, equal for images that must stay together; order: a permutation of the images, which decides
    between folds that suit equally well. Groups are assigned first, the largest first, to the fold with the smallest share of
    their classes. Single images follow, each class in turn, to the fold with the fewest images of the class and then with the
    fewest images. Without groups, the sizes of the folds differ by at most one image, in total and in each class.
    """
    folds, counts = np.full(len(labels), -1), np.zeros((num_folds, int(labels.max()) + 1))
    sizes = np.bincount(labels, minlength=counts.shape[1]).clip(min=1)
    members: dict[int, list[int]] = {}
    for row in order.tolist():
        members.setdefault(int(units[row]), []).append(row)
    groups = sorted((rows for rows in members.values() if len(rows) > 1), key=len, reverse=True)
    singles = [rows[0] for rows in members.values() if len(rows) == 1]
    for rows in (*groups, *([row] for row in sorted(singles, key=labels.__getitem__))):
        own = np.bincount(labels[rows], minlength=counts.shape[1])
        share = (counts * (own / sizes)).sum(1).round(12)
        fold = int(np.lexsort((counts.sum(1), share))[0])
        folds[rows], counts[fold] = fold, counts[fold] + own
    return folds


def fold_manifests(manifest: Manifest, num_folds: int, folder: Path) -> list[Manifest]:
    """Return one manifest per fold, in which the fold is the validation set. They do not list the test images.

    The folds depend on the images and the seed of the manifest, not on the training. Raises UsageError if there are fewer
    images or groups than folds, and DataError if all images of a class are in one fold.
    """
    rows = np.flatnonzero(manifest.subsets != TEST)
    names, paths = ([column[row] for row in rows.tolist()] for column in (manifest.groups, manifest.paths))
    first: dict[str, int] = {}
    units = np.array([first.setdefault(name, row) if name else row for row, name in enumerate(names)], np.int64)
    labels = manifest.labels[rows]
    if (number := len(np.unique(units))) < num_folds:
        raise UsageError(
            f"--folds {num_folds}: {manifest.path} has only {number} training and validation images or groups",
            f"use at most --folds {number}",
        )
    folds = assign_folds(labels, units, random_order(paths, manifest.seed), num_folds)
    _require_training_images(manifest.classes, labels, folds, num_folds)
    part = replace(manifest, paths=paths, labels=labels, groups=names, hashes=_take(manifest.hashes, rows))
    return [
        replace(
            part,
            path=folder / f"fold-{number + 1}.csv",
            subsets=np.where(folds == number, VAL, TRAIN).astype(np.uint8),
            made={**manifest.made, "fold": number + 1, "folds": num_folds},
            fingerprint="",
        )
        for number in range(num_folds)
    ]


def _take(values: Sequence[str], rows: Ints) -> list[str]:
    return [values[row] for row in rows.tolist()]


def _require_training_images(classes: Sequence[str], labels: Ints, folds: Ints, num_folds: int) -> None:
    for fold in range(num_folds):
        outside = np.bincount(labels[folds != fold], minlength=len(classes))
        if not outside.all():
            name = escape_unprintable(classes[int(outside.argmin())])
            raise DataError(
                f"class '{name}' has too few images or groups for cross-validation: all of them are in fold {fold + 1}",
                "add images, or leave the class out: inat-ft split DATA --exclude PATTERN",
            )
