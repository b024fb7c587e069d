"""Checks of the classes: before any image is decoded, and again for the images that remain."""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from inat_ft.data.sources.base import ImageList, ImageRow, LeftOut, Reason
from inat_ft.errors import DataError
from inat_ft.text import escape_unprintable, few, pluralize

_FEW = 10


def check_classes(images: ImageList, test_fraction: float, left_out: Sequence[LeftOut] = ()) -> list[str]:
    """Return warnings about the classes. Raises DataError if they cannot be split.

    test_fraction: of each class, to be reserved for the test; left_out: images of the list that cannot be used.
    """
    skipped = {left.path: left for left in left_out}
    rows = [row for row in images.rows if row.path not in skipped]
    counts = _Counts(images.classes, rows, test_fraction)
    similar = _similar_names(images.classes)
    _require_two(images)
    if empty := [name for name in counts.classes if not counts.total(name)]:
        causes = [skipped[row.path] for row in images.rows if row.label == empty[0]]
        causes += [left for left in images.left_out if empty[0] in left.path.split("/")]
        raise _no_images(empty, causes)
    _require_training(counts, similar)
    _require_enough(counts)
    warnings = [f"{_quoted(group)} differ only in {how}: are they the same class?" for how, group in similar]
    if small := [f"'{name}' ({counts.total(name)})" for name in counts.divided() if counts.total(name) < _FEW]:
        which = "this class" if len(small) == 1 else "these classes"
        warnings.append(
            f"{few(small)}: fewer than {_FEW} images; validation and test results for {which} depend on one or two images"
        )
    if unnamed := [left.path for left in images.left_out if left.reason is Reason.NAME]:
        warnings.append(f"{few(unnamed)}: left out, because the name is not UTF-8; rename it to use it")
    return warnings


class _Counts:
    """Files by class and subset; the subset "" stands for files that are to be divided."""

    def __init__(self, classes: Iterable[str], rows: list[ImageRow], test_fraction: float) -> None:
        given = {row.subset for row in rows}
        self.classes = sorted(classes)
        divided = ("", "train") if not given & {"val", ""} else ("",)
        self.by_class = Counter((row.label, "" if row.subset in divided else row.subset) for row in rows)
        self.has_val = "val" in given
        self.new_test = test_fraction > 0 and "test" not in given

    def of(self, name: str, subset: str) -> int:
        """Return the number of files of a class in a subset."""
        return self.by_class[name, subset]

    def total(self, name: str) -> int:
        """Return the number of files of a class."""
        return sum(self.of(name, subset) for subset in ("train", "val", "test", ""))

    def needed(self, name: str) -> int:
        """Return the number of files that a class must have to be divided."""
        return self.new_test + (not self.has_val) + (self.of(name, "train") == 0)

    def is_short(self, name: str) -> bool:
        """Return whether a class has too few files to be divided."""
        return self.of(name, "") < self.needed(name) if self.of(name, "") else not self.has_val

    def divided(self) -> list[str]:
        """Return the classes whose files are divided into several subsets."""
        return [name for name in self.classes if self.of(name, "") and self.needed(name) > 1]


def _require_two(images: ImageList) -> None:
    if len(images.classes) > 1:
        return
    (name,) = images.classes
    hint = "give the rows at least two different labels"
    if not images.listing:
        hint = "expected: DATA/<class>/*.jpg, a folder for each class"
        if any(path.startswith(f"{name}/") and path.count("/") > 1 for path in images.paths):
            hint += f"\nif the folders in it are the classes: inat-ft split {images.root / name}"
    where = images.root / images.listing
    raise DataError(f"{where} has a single class, {_quoted([name])}: a classifier requires at least two", hint)


def _no_images(empty: list[str], causes: list[LeftOut]) -> DataError:
    why = f": {escape_unprintable(causes[0].path)} is left out ({causes[0].text})" if causes else ""
    return DataError(
        f"{_classes(empty)} {_has(empty)} no usable images{why}",
        f"add images, or leave the class out: --exclude {shlex.quote(escape_unprintable(empty[0]))}",
    )


def _require_training(counts: _Counts, similar: list[tuple[str, list[str]]]) -> None:
    lacking = [name for name in counts.classes if not (counts.of(name, "") or counts.of(name, "train"))]
    for subset, title in (("test", "test"), ("val", "validation")):
        if only := [name for name in lacking if counts.of(name, subset)]:
            near = next(((how, group) for how, group in similar if only[0] in group), None)
            why = f" ({_quoted(near[1])} differ only in {near[0]})" if near else ""
            raise DataError(
                f"{_classes(only)} {_has(only)} images only in the {title} set, none for training{why}",
                "use the same name in every subset" if near else "add training images, or leave it out: --exclude",
            )
    if not counts.has_val:
        return
    if lacking := [name for name in counts.classes if not (counts.of(name, "val") or counts.of(name, ""))]:
        raise DataError(
            f"{_classes(lacking)} {_has(lacking)} no images in the given validation set",
            "add some, leave the class out with --exclude, or remove the validation set to have one split off",
        )


def _require_enough(counts: _Counts) -> None:
    short = [name for name in counts.classes if counts.is_short(name)]
    if not short:
        return
    parts = [
        *(["1 for training"] if not counts.of(short[0], "train") else []),
        *(["1 for validation"] if not counts.has_val else []),
        *(["1 for testing"] if counts.new_test else []),
    ]
    shown = few([f"'{name}' ({counts.of(name, '')})" for name in short])
    raise DataError(
        f"too few images in {shown}: each class requires at least {pluralize(counts.needed(short[0]), 'image')}, "
        f"{', '.join(parts)}",
        f"add images, or leave the class out with --exclude{'; --test-fraction 0 requires one fewer' * counts.new_test}",
    )


def _similar_names(classes: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return groups of class names that differ only in case or Unicode form, with the difference."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        groups[unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())].append(name)
    found = []
    for group in groups.values():
        forms = {unicodedata.normalize("NFC", name) for name in group}
        if len(group) > 1:
            how = "Unicode form" if len(forms) == 1 else "case" if len(forms) == len(group) else "case or Unicode form"
            found.append((how, group))
    return found


def _quoted(names: list[str]) -> str:
    """Return names in quotes; those that are displayed like another one are followed by their escapes."""
    seen = Counter(unicodedata.normalize("NFC", name) for name in names)
    return " and ".join(
        f"'{escape_unprintable(name)}'"
        + (f" ({ascii(name)[1:-1]})" if seen[unicodedata.normalize("NFC", name)] > 1 else "")
        for name in names
    )


def _classes(names: list[str]) -> str:
    return f"class{'es' * (len(names) > 1)} " + few([f"'{name}'" for name in names])


def _has(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"
