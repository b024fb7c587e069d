"""Images that must stay in one subset: duplicates, and groups that the user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.sources.base import ImageList
from inat_ft.data.sources.csv_file import read_rows
from inat_ft.errors import DataError, UsageError
from inat_ft.images.near_duplicates import components, exact_duplicates, near_duplicates
from inat_ft.images.signatures import ImageSignatures
from inat_ft.progress import Log, ignore_log
from inat_ft.text import escape_unprintable, pluralize


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


def group_images(hashes: Sequence[str], groups: Sequence[str], signatures: ImageSignatures | None) -> DuplicateGroups:
    """Return the groups of images with these SHA-256 hashes and group names ("" for none).

    Without signatures, near duplicates are not searched for.
    """
    count = len(hashes)
    exact = exact_duplicates(hashes)
    unique = np.flatnonzero(exact == np.arange(count))
    pairs = np.zeros((0, 2), np.int64)
    if signatures and len(unique) > 1:
        pairs = unique[near_duplicates(signatures.take(unique))]
    first: dict[str, int] = {}
    named = np.fromiter((first.setdefault(name, n) if name else n for n, name in enumerate(groups)), np.int64, count)
    copies = np.concatenate([pairs, _edges(exact)])
    return DuplicateGroups(
        exact,
        components(count, pairs),
        components(count, copies),
        components(count, np.concatenate([copies, _edges(named)])),
        pairs,
    )


def _edges(first: NDArray[np.int64]) -> NDArray[np.int64]:
    own = np.arange(len(first))
    edges: NDArray[np.int64] = np.stack([first, own], 1)[first != own]
    return edges


def clusters(first: NDArray[np.int64]) -> list[list[int]]:
    """Return the members of each group of two or more images, from the first member of each image's group."""
    members: dict[int, list[int]] = {}
    shared = np.bincount(first, minlength=len(first))[first] > 1
    for number in np.flatnonzero(shared).tolist():
        members.setdefault(int(first[number]), []).append(number)
    return list(members.values())


def assign_groups(images: ImageList, group_by: str | None, log: Log = ignore_log) -> None:
    """Set the group of each image from a regular expression on its file name, or from a CSV with the columns path and group.

    If the expression has a group, its first group counts, otherwise the whole match. No match, or an empty value in a CSV,
    means no group. log is called with a message about paths of a CSV that are not images. Raises UsageError or DataError.
    """
    if group_by is None:
        return
    if Path(group_by).suffix.lower() == ".csv":
        _assign_from_csv(images, Path(group_by), log)
        return
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UsageError(
            f"--group-by {group_by!r} is not a valid regular expression: {error}",
            "pass an expression such as '^[^_]+', or a CSV with the columns path and group",
        ) from None
    for row in images.rows:
        match = pattern.search(row.path.rsplit("/", 1)[-1])
        row.group = (match.group(1 if pattern.groups else 0) or "") if match else ""
    if not any(row.group for row in images.rows):
        raise UsageError(
            f"--group-by {group_by!r} does not match any file name, such as {images.rows[0].path}",
            "the expression is searched for in the file name without its folders",
        )


def _assign_from_csv(images: ImageList, file: Path, log: Log) -> None:
    if not file.is_file():
        raise UsageError(f"--group-by: no such file: {file}", "pass a CSV with the columns path and group")
    known: dict[str, tuple[str, int]] = {}
    for line, row in read_rows(file, ("path", "group")):
        group, before = known.setdefault(row["path"], (row["group"], line))
        if group != row["group"]:
            raise DataError(
                f"{file}, line {line}: {row['path']} is in group {row['group']!r}, but in {group!r} in line {before}",
                "remove one of the two lines",
            )
    paths = set(images.paths)
    if not paths & known.keys():
        raise UsageError(
            f"--group-by: {file} does not list any of the images, such as {images.rows[0].path}",
            f"write paths relative to {images.root}",
        )
    if unknown := known.keys() - paths - {left.path for left in images.left_out}:
        first = escape_unprintable(min(unknown, key=lambda path: known[path][1]))
        log(
            f"--group-by: {file} lists {pluralize(len(unknown), 'file')} that are not images of the split, such as {first}"
        )
    for image in images.rows:
        image.group = known.get(image.path, ("", 0))[0]
