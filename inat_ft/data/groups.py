"""Which images must stay on one side of a split: copies of one picture, and members of a group that the user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.sources.base import Files
from inat_ft.data.sources.csv_file import read_rows
from inat_ft.errors import DataError, UsageError
from inat_ft.images.near_duplicates import components, exact_duplicates, near_duplicates
from inat_ft.images.signatures import ImageSignatures
from inat_ft.progress import Log, ignore_log
from inat_ft.text import escape_unprintable, pluralize


@dataclass(frozen=True)
class DuplicateGroups:
    """For each of N images, int64 `[N]`, the first of those that are its kin.

    exact: equal files; near: the same picture in files that differ; copies: either; units: copies and group members.
    pairs: `[P, 2]`, the near copies one by one.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]
    copies: NDArray[np.int64]
    group_ids: NDArray[np.int64]
    pairs: NDArray[np.int64]


def group_images(hashes: Sequence[str], groups: Sequence[str], signatures: ImageSignatures | None) -> DuplicateGroups:
    """Find what belongs together. groups: "" for an image in none; looks: None not to look for near copies."""
    count = len(hashes)
    own = np.arange(count)
    exact = exact_duplicates(hashes)
    unique = np.flatnonzero(exact == own)
    pairs = (
        unique[near_duplicates(signatures.take(unique))]
        if signatures and len(unique) > 1
        else np.zeros((0, 2), np.int64)
    )
    by_name: dict[str, int] = {}
    named = np.fromiter((by_name.setdefault(g, p) if g else p for p, g in enumerate(groups)), np.int64, count)
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
    """The members of each group of two or more, given the first member for each image."""
    members: dict[int, list[int]] = {}
    shared = np.bincount(first, minlength=len(first))[first] > 1
    for place in np.flatnonzero(shared).tolist():
        members.setdefault(int(first[place]), []).append(place)
    return list(members.values())


def group_names(files: Files, group_by: str | None, log: Log = ignore_log) -> list[str]:
    """A group name for each file: what a regular expression finds in its name, or what a CSV of path,group says.

    Of an expression with a group the first group counts, otherwise the whole match; no match means no group, nor does an
    empty value in a CSV. log gets a remark on what a CSV names in vain. Raises UsageError, or DataError for what is in a
    CSV.
    """
    if group_by is None:
        return [""] * len(files.paths)
    if Path(group_by).suffix.lower() == ".csv":
        return _groups_from_csv(files, Path(group_by), log)
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UsageError(
            f"--group-by {group_by!r} is no regular expression: {error}", "such as '^[^_]+', or a CSV of path,group"
        ) from None
    matches = [pattern.search(path.rsplit("/", 1)[-1]) for path in files.paths]
    names = [(match.group(1) if pattern.groups else match.group()) or "" if match else "" for match in matches]
    if not any(names):
        raise UsageError(f"--group-by {group_by!r} finds nothing in the file names, such as {files.paths[0]}")
    return names


def _groups_from_csv(files: Files, file: Path, log: Log) -> list[str]:
    if not file.is_file():
        raise UsageError(f"--group-by: no such file: {file}", "a CSV with the columns path and group")
    known: dict[str, tuple[str, int]] = {}
    for line, row in read_rows(file, ("path", "group")):
        group, before = known.setdefault(row["path"], (row["group"], line))
        if group != row["group"]:
            raise DataError(f"{file}, line {line}: {row['path']} is in {row['group']!r}, in line {before} in {group!r}")
    if not any(path in known for path in files.paths):
        raise UsageError(f"--group-by: {file} names none of the images, such as {files.paths[0]}")
    if strange := known.keys() - set(files.paths) - {left.path for left in files.left_out}:
        first = escape_unprintable(min(strange, key=lambda path: known[path][1]))
        log(f"--group-by: {file} names {pluralize(len(strange), 'file')} not among the images, such as {first}")
    return [known.get(path, ("", 0))[0] for path in files.paths]
