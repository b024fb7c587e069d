"""The group of each image for `inat-ft split --group-by`: from its file name, or from a CSV."""

import re
from collections.abc import Sequence
from pathlib import Path

from inat_ft.data.sources.base import ImageList
from inat_ft.data.sources.csv_file import read_rows
from inat_ft.errors import DataError, UsageError
from inat_ft.images.boxes import file_of, shared_file
from inat_ft.progress import Log, ignore_log
from inat_ft.text import escape_unprintable, pluralize


def assign_groups(images: ImageList, group_by: str, log: Log = ignore_log) -> None:
    """Set the group of each image from a regular expression on its file name, or from a CSV with the columns path and group.

    If the expression has a group, its first group counts, otherwise the whole match. No match, or an empty value in a CSV,
    means no group. log is called with the number of groups, and with paths of a CSV that are not images. Raises UsageError
    or DataError.
    """
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
    matches = [pattern.search(file_of(row.path).rsplit("/", 1)[-1]) for row in images.rows]
    groups = [match and match.group(1 if pattern.groups else 0) for match in matches]
    if not any(groups):
        raise UsageError(
            f"--group-by {group_by!r} does not match any file name, such as {images.rows[0].path}",
            "the expression is searched for in the file name without its folders",
        )
    _assign(images, groups, log)


def _assign_from_csv(images: ImageList, file: Path, log: Log) -> None:
    if not file.is_file():
        raise UsageError(f"--group-by: no such file: {file}", "pass a CSV with the columns path and group")
    known: dict[str, tuple[str, int]] = {}
    for line, row in read_rows(file, "group"):
        group, before = known.setdefault(row["path"], (row["group"], line))
        if group != row["group"]:
            raise DataError(
                f"{file}, line {line}: {row['path']} is in group {row['group']!r}, but in {group!r} in line {before}",
                "remove one of the two lines",
            )
    if known.keys().isdisjoint(map(file_of, images.paths)):
        raise UsageError(
            f"--group-by: {file} does not list any of the images, such as {images.rows[0].path}",
            f"write paths relative to {images.root}",
        )
    listed = {*map(file_of, images.paths), *(file_of(left.path) for left in images.left_out)}
    if unknown := [path for path in known if path not in listed]:
        files, first = pluralize(len(unknown), "file"), escape_unprintable(unknown[0])
        log(f"--group-by: {file} lists {files} not among the images of the split, such as {first}")
    _assign(images, [known.get(file_of(path), ("", 0))[0] for path in images.paths], log)


def _assign(images: ImageList, groups: Sequence[str | None], log: Log) -> None:
    for row, group in zip(images.rows, groups, strict=True):
        row.group = group or shared_file(row.path)
    alone = [path for path, group in zip(images.paths, groups, strict=True) if not group]
    text = f"--group-by: {pluralize(len({*groups} - {None, ''}), 'group')}"
    if alone:
        text += f"; {pluralize(len(alone), 'file')} without a group, such as {escape_unprintable(alone[0])}"
    log(text)
