"""Files that should be images, as a source lists them, and which names are fit for a list."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from inat_ft.data.wording import printable

UNPRINTABLE = "the name has characters that are not UTF-8 or cannot be printed"

_IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}


@dataclass
class Files:
    """Files that should be images: path (posix, relative to the root), label, and subset where the source says it.

    subsets: train, val, test, or "" for images that are to be split; left_out: (path, reason) of what is no part of it;
    classes: every class that the source has, even if it has no images; csv: the name of the CSV that lists them, in the root.
    """

    root: Path
    layout: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    subsets: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    csv: str = ""

    def add(self, path: str, label: str, subset: str) -> None:
        """Take up one file."""
        self.paths.append(path)
        self.labels.append(label)
        self.subsets.append(subset)

    def leave(self, path: str, reason: str) -> None:
        """Leave one out, under a name that can be printed."""
        self.left_out.append((printable(path), reason))


def real_path(path: Path | str) -> Path:
    """Where a path leads when links are followed; Path.resolve() would raise on a link that leads to itself."""
    return Path(os.path.realpath(path))


def is_ignored(name: str) -> bool:
    """Whether a file is hidden or the leavings of a file manager."""
    return name.startswith(".") or name.lower() in _IGNORED
