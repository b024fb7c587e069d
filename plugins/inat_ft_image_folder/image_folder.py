"""Images in folders: class folders, train, val and test folders of them, and iNaturalist 2021's folders by taxon."""

from __future__ import annotations

import os
from pathlib import Path

from inat_ft.data.sources.base import NOT_UTF8, ImageList, ReadOptions, Reason, Source, is_ignored, is_text, real_path
from inat_ft.errors import DataError, UsageError
from inat_ft.registry import FEATURES, get

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
_SUBSET_FOLDERS = {
    "train": {"train", "training", "train_mini", "2021_train", "2021_train_mini"},
    "val": {"val", "valid", "validation", "2021_valid"},
    "test": {"test", "testing"},
}
_EXPECTED = (
    "expected: DATA/<class>/*.jpg, or DATA/train/<class>/*.jpg with DATA/val or DATA/test, or a CSV (path,label)"
)


class ImageFolder(Source):
    """A folder whose subfolders are classes, or train, val and test folders of classes."""

    supports_classes_from = True

    def recognizes(self, location: Path) -> bool:
        return location.is_dir()

    def read(self, location: Path, options: ReadOptions) -> ImageList:
        try:
            return _Walk(location, options).images()
        except OSError as error:
            raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error


class _Walk:
    """Find the class folders below a root, and list their files."""

    def __init__(self, root: Path, options: ReadOptions) -> None:
        self.root, self.rank, self.exclude = root, options.classes_from, options.exclude
        self.taxa = get(FEATURES, "taxa").load()(self.rank) if self.rank else None
        self.manifest = real_path(options.manifest) if options.manifest else None
        self.found = ImageList(root, "class folders")

    def images(self) -> ImageList:
        top = self._folders(self.root)
        given = self._subset_folders(top)
        if len(given) == 3:
            self.found.layout, subsets = "train, val and test folders", ("train", "val", "test")
        else:
            other = next((name for name in given if name != "train"), "")
            if given:
                self.found.layout = f"train and {other} (the reserved test set)" if other else "train folder"
            subsets = ("", "test", "test")  # a single folder beside train is the test set, also if its name is val
        for name, subset in zip(_SUBSET_FOLDERS, subsets, strict=True):
            if name in given:
                self._add_classes(self._folders(given[name]), subset)
        if not given:
            self._add_classes(top, "")
        for folder in (self.root, *given.values()):
            self._leave_out_loose_images(folder)
        if not self.found.rows:
            raise DataError(f"{self.root} has no class folders that contain files", _EXPECTED)
        for folder in (set(top) - set(given.values())) if given else ():
            self.found.leave_out(folder.name, f"a folder beside {' and '.join(given)}")
        if self.taxa:
            self.taxa.rename(self.found)
        return self.found

    def _add_classes(self, folders: list[Path], subset: str) -> None:
        for folder in folders:
            relative = self._relative(folder)
            if folder.is_symlink():
                self.found.leave_out(relative, _link_reason(self.root, folder))
            else:
                self._add_files(relative, "" if self.rank else folder.name, subset)

    def _leave_out_loose_images(self, folder: Path) -> None:
        for path in folder.iterdir():
            is_image = path.suffix.lower() in _SUFFIXES and not is_ignored(path.name) and path.is_file()
            if is_image and not self.exclude(relative := self._relative(path)):
                self.found.leave_out(relative, "outside the class folders")

    def _subset_folders(self, top: list[Path]) -> dict[str, Path]:
        """Return the folders of train, val and test; empty if the folders are classes."""
        given: dict[str, Path] = {}
        for subset, names in _SUBSET_FOLDERS.items():
            for folder in (each for each in top if each.name.lower() in names):
                if subset in given:
                    raise DataError(
                        f"{self.root} has two folders for {subset}: {given[subset].name} and {folder.name}",
                        f"rename one of them, or leave it out: --exclude {folder.name}",
                    )
                given[subset] = folder
        if "train" not in given and given and len(given) == len(top):
            raise DataError(f"{self.root} has no train folder, only {' and '.join(f.name for f in top)}", _EXPECTED)
        is_class = len(given) == 1 and (len(top) > 1 or not self._folders(top[0]))
        if "train" not in given or is_class:  # a class can be named train
            self._require_classes(top)
            return {}
        for folder in given.values():
            if folder.is_symlink():
                raise DataError(f"{folder} is {_link_reason(self.root, folder)}: links are not followed", _EXPECTED)
            if not self._folders(folder):
                raise DataError(f"{folder} has no class folders", _EXPECTED)
        return given

    def _require_classes(self, top: list[Path]) -> None:
        if not top:
            raise DataError(f"{self.root} has no class folders", _EXPECTED)
        inner = {each.name.lower() for each in self._folders(top[0])} if len(top) == 1 else set()
        if inner & _SUBSET_FOLDERS["train"] and inner & (_SUBSET_FOLDERS["val"] | _SUBSET_FOLDERS["test"]):
            raise UsageError(f"{self.root} contains a single data set: {top[0].name}", f"inat-ft split {top[0]}")

    def _folders(self, folder: Path) -> list[Path]:
        """Return the folders in a folder, links to folders among them, except excluded ones and one of manifests."""
        inside = (path for path in folder.iterdir() if not is_ignored(path.name) and path.is_dir())
        return sorted(
            path for path in inside if not self.exclude(self._relative(path)) and not self._contains_manifests(path)
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _contains_manifests(self, folder: Path) -> bool:
        """Return whether a folder is not a class but contains only the manifest and other CSVs."""
        if self.manifest is None or folder.resolve() != self.manifest.parent:
            return False
        return all(is_ignored(path.name) or path.suffix.lower() == ".csv" for path in folder.iterdir())

    def _add_files(self, relative: str, label: str, subset: str) -> None:
        """Add the files of a folder and of its subfolders, except hidden ones."""
        label = (self.taxa and self.taxa.label(relative.rpartition("/")[2])) or label
        if not is_text(relative):
            self.found.leave_out(relative, *NOT_UTF8)
            return
        if label:
            self.found.classes.add(label)
        try:
            entries = list(os.scandir(self.root / relative))
        except OSError as error:
            self.found.leave_out(relative, f"cannot be read: {error.strerror}", Reason.UNUSABLE)
            return
        for entry in entries:
            path = f"{relative}/{entry.name}"
            is_manifest = self.manifest and entry.name == self.manifest.name and real_path(entry.path) == self.manifest
            if not (is_manifest or is_ignored(entry.name) or self.exclude(path)):
                self._add_entry(entry, path, label, subset)

    def _add_entry(self, entry: os.DirEntry[str], path: str, label: str, subset: str) -> None:
        if not is_text(path):
            self.found.leave_out(path, *NOT_UTF8)
        elif entry.is_symlink() and (reason := _link_reason(self.root, Path(entry.path))):
            self.found.leave_out(path, reason)
        elif entry.is_dir():
            self._add_files(path, label, subset)
        elif label:
            self.found.add(path, label, subset)
        else:
            raise DataError(
                f"--classes-from {self.rank}: no folder of {path} is named like "
                "00012_Kingdom_Phylum_Class_Order_Family_Genus_species",
                "remove --classes-from to use the folder names as classes",
            )


def _link_reason(root: Path, link: Path) -> str:
    """Return why a link is left out, or "" for a link to a file inside the root."""
    if not real_path(link).is_relative_to(root.resolve()):
        return "a link out of the folder"
    if not os.path.exists(link):
        return "a broken link"
    return "a link to a folder" if link.is_dir() else ""
