"""Images in folders: class folders, train and val or test folders of them, and iNaturalist 2021's folders by taxon."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from inat_ft.data.sources.base import Exclusions, Files, Reason, is_ignored, is_text, real_path
from inat_ft.errors import DataError, UsageError

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
"""Ranks in the folder names of iNaturalist 2021, such as 00012_Animalia_Annelida_..._terrestris."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
_ROLES = {
    "train": {"train", "training", "train_mini", "2021_train", "2021_train_mini"},
    "val": {"val", "valid", "validation", "2021_valid"},
    "test": {"test", "testing"},
}
_BELOW = "_"
"""Stands between taxa, and in no name of one."""
_TAXON = re.compile(r"\d{5}_" + "_".join(["([^_]+)"] * 7))


def read_image_folder(root: Path, rank: str | None, skip: Path | None, exclude: Exclusions) -> Files:
    """Return the files of a folder whose subfolders are classes, or subsets that hold classes.

    rank: of RANKS, where classes are taxa; skip: a manifest to ignore, and its folder if that contains only such lists;
    exclude: what else to leave out. Raises UsageError or DataError.
    """
    try:
        return _Walk(root, rank, skip, exclude).files()
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error


class _Walk:
    """The files of a folder whose subfolders are classes, or subsets that hold classes."""

    def __init__(self, root: Path, rank: str | None, skip: Path | None, exclude: Exclusions) -> None:
        self.root, self.rank, self.exclude = root, rank, exclude
        self.skip = real_path(skip) if skip else None

    def files(self) -> Files:
        files = self._files()
        if self.rank:
            named = _named(files.classes)
            files.labels = [named[label] for label in files.labels]
            files.classes = set(named.values())
        return files

    def _files(self) -> Files:
        top = self._inside(self.root)
        roles = self._roles(top)
        if not roles:
            return self._found("class folders", {"": top})
        if len(roles) == 3:
            layout, named = "train, val and test folders", ("train", "val", "test")
        else:
            other = next((role for role in roles if role != "train"), "")
            layout = f"train and {other} (the reserved test set)" if other else "train folder"
            named = ("", "test", "test")  # with one folder beside train, that is the test set, whatever its name
        subsets = {name: self._inside(roles[role]) for role, name in zip(_ROLES, named, strict=True) if role in roles}
        files = self._found(layout, subsets)
        for folder in set(top) - set(roles.values()):
            files.leave_out(folder.name, f"a folder beside {' and '.join(roles)}")
        for folder in roles.values():
            self._loose(folder, files)
        return files

    def _found(self, layout: str, subsets: dict[str, list[Path]]) -> Files:
        files = Files(self.root, layout, exclude=self.exclude)
        for subset, folders in subsets.items():
            for folder in folders:
                relative = self._relative(folder)
                if folder.is_symlink():
                    files.leave_out(relative, _link_reason(self.root, folder))
                else:
                    self._add(files, relative, "" if self.rank else folder.name, subset)
        self._loose(self.root, files)
        if not files.paths:
            raise DataError(f"{self.root} holds no class folders with files in them", _expected())
        return files

    def _roles(self, top: list[Path]) -> dict[str, Path]:
        """Which folder is train, val and test; none when the folders are classes."""
        roles: dict[str, Path] = {}
        for role, names in _ROLES.items():
            for folder in (each for each in top if each.name.lower() in names):
                if role in roles:
                    raise DataError(f"{self.root} has two folders for {role}: {roles[role].name} and {folder.name}")
                roles[role] = folder
        if "train" not in roles and roles and len(roles) == len(top):
            raise DataError(f"{self.root} has no train folder, only {' and '.join(f.name for f in top)}", _expected())
        alone = len(roles) == 1 and (len(top) > 1 or not self._inside(top[0]))
        if "train" not in roles or alone:  # a class may well be called train
            self._require_classes(top)
            return {}
        for folder in roles.values():
            if folder.is_symlink():
                raise DataError(f"{folder} is {_link_reason(self.root, folder)}: links are not followed", _expected())
            if not self._inside(folder):
                raise DataError(f"{folder} has no class folders in it", _expected())
        return roles

    def _require_classes(self, top: list[Path]) -> None:
        if not top:
            raise DataError(f"{self.root} is not an image folder: it has no class folders in it", _expected())
        inner = {each.name.lower() for each in self._inside(top[0])} if len(top) == 1 else set()
        if inner & _ROLES["train"] and inner & (_ROLES["val"] | _ROLES["test"]):
            raise UsageError(f"{self.root} holds a data set, {top[0].name}, but is none", f"inat-ft split {top[0]}")

    def _inside(self, folder: Path) -> list[Path]:
        """The folders in a folder, links to folders among them."""
        inside = (path for path in folder.iterdir() if not is_ignored(path.name) and path.is_dir())
        return sorted(path for path in inside if not self.exclude(self._relative(path)) and not self._holds_lists(path))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _holds_lists(self, folder: Path) -> bool:
        """Whether a folder is no class but the place of manifests."""
        if self.skip is None or folder.resolve() != self.skip.parent:
            return False
        return all(is_ignored(path.name) or path.suffix.lower() == ".csv" for path in folder.iterdir())

    def _is_skipped(self, entry: os.DirEntry[str], path: str) -> bool:
        return is_ignored(entry.name) or self.exclude(path) or self._is_manifest(entry)

    def _is_manifest(self, entry: os.DirEntry[str]) -> bool:
        return self.skip is not None and entry.name == self.skip.name and real_path(entry.path) == self.skip

    def _add(self, files: Files, relative: str, label: str, subset: str) -> None:
        """Take up the files of a folder and of the folders in it, save hidden ones."""
        label = self._taxon(relative.rpartition("/")[2]) or label
        if not is_text(relative):
            files.leave_out_unnamed(relative)
            return
        if label:
            files.classes.add(label)
        try:
            entries = list(os.scandir(self.root / relative))
        except OSError as error:
            files.leave_out(relative, f"cannot be read: {error.strerror}", Reason.UNUSABLE)
            return
        for entry in entries:
            path = f"{relative}/{entry.name}"
            if self._is_skipped(entry, path):
                continue
            if not is_text(path):
                files.leave_out_unnamed(path)
            elif entry.is_symlink() and (reason := _link_reason(self.root, Path(entry.path))):
                files.leave_out(path, reason)
            elif entry.is_dir():
                self._add(files, path, label, subset)
            elif label:
                files.add(path, label, subset)
            else:
                raise DataError(
                    f"--classes-from {self.rank}: no folder of {path} is named like "
                    "00012_Kingdom_Phylum_Class_Order_Family_Genus_species"
                )

    def _taxon(self, folder: str) -> str:
        """The taxon that a folder is named after, with all above it, "" for none."""
        match = _TAXON.fullmatch(folder) if self.rank else None
        if not match:
            return ""
        above = RANKS.index(str(self.rank))
        taxon = match[above + 1] if self.rank != "species" else f"{match[above]} {match[above + 1]}"
        return _BELOW.join((*match.groups()[:above], taxon))

    def _loose(self, folder: Path, files: Files) -> None:
        """Images beside the class folders have no label."""
        for path in folder.iterdir():
            is_image = path.suffix.lower() in _SUFFIXES and not is_ignored(path.name) and path.is_file()
            if is_image and not self.exclude(relative := self._relative(path)):
                files.leave_out(relative, "outside the class folders")


def _named(taxa: Iterable[str]) -> dict[str, str]:
    """What taxa, each written with all above it, are called: by what is above, too, where others have the same name."""
    names = {taxon: taxon.split(_BELOW) for taxon in taxa}
    met = Counter(name[-1] for name in names.values())
    near = Counter(tuple(name[-2:]) for name in names.values())
    named = {}
    for taxon, name in names.items():
        above = name[-2:-1] if near[tuple(name[-2:])] == 1 else name[:-1]
        named[taxon] = name[-1] if met[name[-1]] == 1 else f"{name[-1]} ({' '.join(above)})"
    return named


def _expected() -> str:
    return "expected: DATA/<class>/*.jpg, or DATA/train/<class>/*.jpg with DATA/val or DATA/test, or a CSV (path,label)"


def _link_reason(root: Path, link: Path) -> str:
    """Why a link is left out, "" for one to a file in the folder."""
    if not real_path(link).is_relative_to(root.resolve()):
        return "a link out of the folder"
    if not os.path.exists(link):
        return "a link that leads nowhere"
    return "a link to a folder" if link.is_dir() else ""
