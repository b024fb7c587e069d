"""Files that should be images, as a source lists them, and why others are left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from inat_ft.text import escape_unprintable

_IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}


class Reason(StrEnum):
    """Why a file is left out of a manifest; manifests store the value."""

    UNUSABLE = "unusable"
    """It cannot be read or decoded."""
    TOO_LARGE = "too_large"
    """It has more pixels than the limit."""
    COPY = "copy"
    """It is a copy of an image of another subset."""
    GROUP = "group"
    """It is in one group with an image of another subset."""
    LABEL_CONFLICT = "label_conflict"
    """Equal files have several labels."""
    PLACE = "place"
    """It lies outside the class folders, or is a link that is not followed."""
    NAME = "name"
    """Its name is not UTF-8."""
    EXCLUDED = "excluded"
    """It matches a pattern of `--exclude`."""


class LeftOut(NamedTuple):
    """A file or folder that is not part of a manifest."""

    path: str
    text: str
    """The reason for a person, as "kind: detail" or "kind"."""
    reason: Reason | None
    """None in a manifest of a version that stored the text alone."""


class Exclusions:
    """Glob patterns of files and folders to leave out.

    A pattern with a slash applies to the path relative to the root, one without to each name in it. A name equal to the
    pattern matches too, so that brackets in names need no escaping.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = [pattern.strip("/") for pattern in patterns]
        self.found: dict[str, str] = {}
        """Excluded paths, with the pattern that each matches."""

    def __call__(self, path: str) -> bool:
        """Return whether a file or folder is excluded, its parent folders not considered."""
        name = path.rpartition("/")[2]
        for pattern in self.patterns:
            compared = path if "/" in pattern else name
            if pattern == compared or fnmatchcase(compared, pattern):
                self.found[path] = pattern
                return True
        return False

    def contains(self, path: str) -> bool:
        """Return whether a file is excluded, itself or with one of its parent folders."""
        parts = path.split("/") if self.patterns else []
        return any(self("/".join(parts[: end + 1])) for end in range(len(parts)))

    def unused(self) -> list[str]:
        """Return the patterns that no path matches."""
        return [pattern for pattern in self.patterns if pattern not in self.found.values()]


@dataclass
class Files:
    """Files that should be images: path (posix, relative to the root), label, and subset where the source says it.

    subsets: train, val, test, or "" for images that are to be split; left_out: what is not part of it; classes: every class
    that the source has, even if it has no images; csv: the name of the CSV that lists them, in the root; exclude: patterns of
    what is left out on request.
    """

    root: Path
    layout: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    subsets: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    csv: str = ""
    exclude: Exclusions = field(default_factory=lambda: Exclusions(()))

    def add(self, path: str, label: str, subset: str) -> None:
        """Take up one file."""
        self.paths.append(path)
        self.labels.append(label)
        self.subsets.append(subset)

    def leave_out(self, path: str, text: str, reason: Reason = Reason.PLACE) -> None:
        """Leave one out."""
        self.left_out.append(LeftOut(path if is_text(path) else escape_unprintable(path), text, reason))

    def leave_out_unnamed(self, path: str) -> None:
        """Leave one out whose name cannot be written to a file."""
        self.leave_out(path, "the name is not UTF-8", Reason.NAME)

    def leave_out_excluded(self) -> None:
        """Leave out what the patterns have matched."""
        for path, pattern in self.exclude.found.items():
            self.leave_out(path, f"excluded: it matches {pattern}", Reason.EXCLUDED)


def real_path(path: Path | str) -> Path:
    """Where a path leads when links are followed; Path.resolve() would raise on a link that leads to itself."""
    return Path(os.path.realpath(path))


def is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8; any such name of a file can be read back from a manifest."""
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def is_ignored(name: str) -> bool:
    """Return whether a file is hidden or a by-product of a file manager."""
    return name.startswith(".") or name.lower() in _IGNORED
