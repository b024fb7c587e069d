"""The base class of data sources, the list of image files that a source returns, and the choice of the source."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar, NamedTuple

from inat_ft.errors import DataError, PluginError, UsageError
from inat_ft.images.boxes import file_of
from inat_ft.registry import SOURCES, Plugin, call_plugin, get, plugin_label, plugins
from inat_ft.text import escape_unprintable

_IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}


class Reason(StrEnum):
    """Why a file is not part of a manifest; manifests store the value."""

    UNUSABLE = "unusable"  # it cannot be read or decoded
    TOO_LARGE = "too_large"  # it has more pixels than the limit
    COPY = "copy"  # of an image in another subset
    GROUP = "group"  # it is in the same group as an image in another subset
    LABEL_CONFLICT = "label_conflict"  # equal files have several labels
    PLACE = "place"  # outside the class folders, or a link that is not followed
    NAME = "name"  # not UTF-8
    CORRECTED = "corrected"  # `--corrections` drops it
    EXCLUDED = "excluded"  # it matches a pattern of `--exclude`


NOT_UTF8 = ("the name is not UTF-8", Reason.NAME)


class LeftOut(NamedTuple):
    """A file or folder that is not part of a manifest; text: the reason as a user reads it."""

    path: str
    text: str
    reason: Reason | None = None
    """None in a manifest that stores the text alone."""


class Exclusions:
    """Glob patterns of files and folders to leave out.

    A pattern with a slash is compared with the path relative to the root, one without with each name in it. A name equal to
    the pattern matches too, so that brackets in names need no escaping.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.patterns = [pattern.strip("/") for pattern in patterns]
        self.found: dict[str, str] = {}
        """Excluded paths, with the pattern that each matches."""

    def __call__(self, path: str) -> bool:
        """Return whether a file or folder matches a pattern, its parent folders not considered."""
        name = path.rpartition("/")[2]
        for pattern in self.patterns:
            compared = path if "/" in pattern else name
            if pattern == compared or fnmatchcase(compared, pattern):
                self.found[path] = pattern
                return True
        return False

    def contains(self, path: str) -> bool:
        """Return whether a file or one of its parent folders matches a pattern."""
        parts = path.split("/") if self.patterns else []
        return any(self("/".join(parts[: end + 1])) for end in range(len(parts)))


@dataclass(slots=True)
class ImageRow:
    """One image file; path: relative to the root, with forward slashes; sha256: of its content, in hex, once it was read."""

    path: str
    label: str
    subset: str = ""
    """train, val or test; "" for an image that `split` assigns to a subset."""
    group: str = ""
    """Images with the same group stay in one subset; "" for none."""
    sha256: str = ""


@dataclass
class ImageList:
    """Image files of a data set, and the files that are left out.

    root: the folder that paths are relative to; layout: the arrangement in a few words, recorded in the manifest; listing:
    name of the file in `root` that lists the images, "" if folders do; classes: every class, also those without images;
    source: name of the source if reading the location again requires it, set by the caller.
    """

    root: Path
    layout: str
    listing: str = ""
    rows: list[ImageRow] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    source: str = ""

    @property
    def paths(self) -> list[str]:
        """Paths of the images, relative to the root."""
        return [row.path for row in self.rows]

    def add(self, path: str, label: str, subset: str = "", group: str = "") -> None:
        """Add an image. Raises DataError for a path outside the root and for a label or subset that is not valid."""
        if not path or not label:
            raise DataError("path or label is empty", "give each image a path and a label")
        if not is_text(label):
            raise DataError(f"the label {label!r} contains a character that cannot be stored", "rename the label")
        if subset not in ("", "train", "val", "test"):
            raise DataError(f"the subset {subset!r} is not train, val, test or empty", "correct the subset")
        if os.path.isabs(path):
            raise DataError(f"the path {path} is absolute", f"make it relative to {self.root}")
        if ".." in path and ".." in path.split("/"):
            raise DataError(f"the path {path} is outside {self.root}", "move the list to a folder above the images")
        self.classes.add(label)
        self.rows.append(ImageRow(path, label, subset, group))

    def leave_out(self, path: str, text: str, reason: Reason = Reason.PLACE) -> None:
        """Record a file or folder that is not used, with the reason as the user reads it."""
        self.left_out.append(LeftOut(path if is_text(path) else escape_unprintable(path), text, reason))


@dataclass(frozen=True)
class ReadOptions:
    """What the command line passes to a source.

    exclude: only sources that walk folders need to apply it; manifest: the file that `split` writes, which can be in the
    folder of the images; classes_from: taxonomic rank, for sources with `supports_classes_from`.
    """

    exclude: Exclusions = field(default_factory=Exclusions)
    manifest: Path | None = None
    classes_from: str | None = None


class Source(ABC):
    """Base class of data sources: it turns a location on disk into a list of image files with labels.

    Register a subclass under the entry point group `inat_ft.sources`. It is created without arguments. The first line of
    its docstring describes it to users.
    """

    supports_classes_from: ClassVar[bool] = False
    """Whether `read` uses `options.classes_from`."""

    @abstractmethod
    def recognizes(self, location: Path) -> bool:
        """Return whether `read` can read this existing file or folder, without reading all of it."""

    @abstractmethod
    def read(self, location: Path, options: ReadOptions) -> ImageList:
        """Return the image files of a location, in any order.

        Add each image with `ImageList.add`. For a list with a `listing`, excluded paths, names that are not UTF-8 and links
        out of the root are left out by the caller. Raise DataError, with a hint, if the location is not valid.
        """


def real_path(path: Path | str) -> Path:
    """Resolve links. Unlike Path.resolve, this does not raise on a link to itself."""
    return Path(os.path.realpath(path))


def is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8 and is a possible file name."""
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def is_ignored(name: str) -> bool:
    """Return whether a file is hidden or created by a file manager."""
    return name.startswith(".") or name.lower() in _IGNORED


def find_images(location: Path, source: str | None = None, options: ReadOptions | None = None) -> ImageList:
    """Return the images of a location, sorted by path.

    source: name of the source; by default the first that recognizes the location, the built-in ones before plugins. Raises
    UsageError, DataError or PluginError.
    """
    if not location.exists():
        raise UsageError(f"no such file or folder: {location}", "pass a folder of class folders or a CSV (path,label)")
    options = options or ReadOptions()
    plugin, chosen = _create(get(SOURCES, source)) if source else _recognizing(location)
    if options.classes_from and not chosen.supports_classes_from:
        raise UsageError(f"--classes-from applies to folders, not to {location}", "remove --classes-from")
    images = call_plugin(chosen.read, location, options)
    if not isinstance(images, ImageList):
        raise PluginError(f"{plugin_label(SOURCES, type(chosen))}: read() must return an ImageList, not {images!r}")
    images.source = "" if plugin.is_builtin and chosen.recognizes(location) else plugin.name
    if images.listing:
        _leave_out_unusable_paths(images, options)
    if not images.rows:
        raise DataError(f"{location} lists no images", "add at least one image with a label for each class")
    for path, pattern in options.exclude.found.items():
        images.leave_out(path, f"excluded: it matches {pattern}", Reason.EXCLUDED)
    images.rows.sort(key=lambda row: row.path)
    images.left_out.sort()
    for before, row in zip(images.rows, images.rows[1:], strict=False):
        if before.path == row.path:
            raise DataError(f"{location} lists {row.path} twice", "remove one of the two entries")
    return images


def _create(plugin: Plugin) -> tuple[Plugin, Source]:
    return plugin, call_plugin(plugin.load())


def _recognizing(location: Path) -> tuple[Plugin, Source]:
    """Return the first source that recognizes a location. A plugin that fails is reported only if no other one does."""
    hints = [f"pass a folder of class folders or a CSV (path,label); installed sources: {', '.join(plugins(SOURCES))}"]
    found = [plugin for claims in plugins(SOURCES).values() for plugin in claims]
    for plugin in sorted(found, key=lambda plugin: not plugin.is_builtin):
        try:
            source = _create(plugin)[1]
            if call_plugin(source.recognizes, location):
                return plugin, source
        except PluginError as error:
            hints.append(error.message)
    raise UsageError(f"no data source recognizes {location}", "\n".join(hints))


def _leave_out_unusable_paths(images: ImageList, options: ReadOptions) -> None:
    """Leave out excluded paths, names that are not UTF-8, and links out of the root."""
    root, inside = images.root.resolve(), dict[str, bool]()
    rows = [row for row in images.rows if not options.exclude.contains(file_of(row.path))]
    images.rows, images.classes = [], {row.label for row in rows}
    for row in rows:
        whole = os.path.join(root, file_of(row.path))
        folder = os.path.dirname(whole)
        if not is_text(row.path):
            images.leave_out(row.path, *NOT_UTF8)
            continue
        if folder not in inside:  # each folder is checked once
            inside[folder] = real_path(folder).is_relative_to(root)
        if inside[folder] and not (os.path.islink(whole) and not real_path(whole).is_relative_to(root)):
            images.rows.append(row)
        else:
            images.leave_out(row.path, "a link out of the folder")
