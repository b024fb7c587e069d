"""Problems of the classes that the list of files shows, before any image is decoded."""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

from inat_ft.data.sources.base import Files, Reason
from inat_ft.errors import DataError
from inat_ft.text import escape_unprintable, few, pluralize

_FEW = 10


def check_classes(files: Files, test_fraction: float) -> list[str]:
    """Return warnings about the classes of these files. Raises DataError when they cannot be split.

    test_fraction: of each class, to be reserved for the test. Files are counted, so that a class may turn out to be smaller.
    """
    counts = _Counts(files, test_fraction)
    twins = _twins(files.classes)
    _require_two(files)
    _require_files(files, counts)
    _require_training(counts, twins)
    _require_enough(counts)
    warnings = [f"{names(group)} differ only in {how}: are they one class?" for how, group in twins]
    if small := [f"'{name}' ({counts.total(name)})" for name in counts.divided() if counts.total(name) < _FEW]:
        warnings.append(
            f"{few(small)}: fewer than {_FEW} images, so that validation and test results for "
            f"{'this class' if len(small) == 1 else 'these classes'} rest on one or two images"
        )
    if unnamed := [left.path for left in files.left_out if left.reason is Reason.NAME]:
        warnings.append(f"{few(unnamed)}: left out, since the name is not UTF-8; rename it to use it")
    warnings += [f"--exclude {pattern!r} matches nothing" for pattern in files.exclude.unused()]
    return warnings


class _Counts:
    """Files by class and subset, and what is to be divided."""

    def __init__(self, files: Files, test_fraction: float) -> None:
        given = set(files.subsets)
        self.classes = sorted(files.classes)
        self.by_class = Counter(zip(files.labels, files.subsets, strict=True))
        self.divides_train = not given & {"val", ""}
        self.has_val = "val" in given
        self.new_test = test_fraction > 0 and "test" not in given

    def of(self, name: str, subset: str) -> int:
        """Return the number of files of a class in a subset; "" are those to be divided."""
        if self.divides_train and subset in ("", "train"):
            return self.by_class[name, "train"] if subset == "" else 0
        return self.by_class[name, subset]

    def total(self, name: str) -> int:
        """Return the number of files of a class."""
        return sum(self.by_class[name, subset] for subset in ("train", "val", "test", ""))

    def needed(self, name: str) -> int:
        """Return how many files of a class must be there to be divided."""
        return self.new_test + (not self.has_val) + (self.of(name, "train") == 0)

    def is_short(self, name: str) -> bool:
        """Return whether a class has too few files to be divided."""
        return self.of(name, "") < self.needed(name) if self.of(name, "") else not self.has_val

    def divided(self) -> list[str]:
        """Return the classes whose files are divided into several subsets."""
        return [name for name in self.classes if self.of(name, "") and self.needed(name) > 1]


def _require_two(files: Files) -> None:
    if len(files.classes) == 1:
        (name,) = files.classes
        inner = files.layout == "class folders" and any(path.count("/") > 1 for path in files.paths)
        advice = f"\nif its folders are the classes: inat-ft split {files.root / name}" if inner else ""
        raise DataError(
            f"{files.root / files.csv} has a single class, {names([name])}: a classifier needs two or more",
            "give its rows two or more labels"
            if files.csv
            else f"expected: DATA/<class>/*.jpg, a folder for each class{advice}",
        )


def _require_files(files: Files, counts: _Counts) -> None:
    empty = [name for name in counts.classes if not counts.total(name)]
    if not empty:
        return
    left = next((left for left in files.left_out if empty[0] in left.path.split("/")), None)
    why = f": {escape_unprintable(left.path)} ({left.text})" if left else ": there are no files of it"
    raise DataError(
        f"{_classes(empty)} {'has' if len(empty) == 1 else 'have'} no images{why}",
        f"add images, remove the folder, or leave it out: --exclude {shlex.quote(escape_unprintable(empty[0]))}",
    )


def _require_training(counts: _Counts, twins: list[tuple[str, list[str]]]) -> None:
    alone = [name for name in counts.classes if not (counts.of(name, "") or counts.of(name, "train"))]
    for place in ("test", "val"):
        if only := [name for name in alone if counts.of(name, place)]:
            near = next(((how, group) for how, group in twins if only[0] in group), None)
            why = f" ({names(near[1])} differ only in {near[0]})" if near else ""
            raise DataError(
                f"{_classes(only)} {'has' if len(only) == 1 else 'have'} images only in the "
                f"{'test' if place == 'test' else 'validation'} set, none to train on{why}",
                "give it the name of the class that is meant"
                if near
                else "add training images, or leave it out: --exclude",
            )
    if counts.has_val and (lacking := [name for name in counts.classes if not counts.of(name, "val")]):
        divisible = [name for name in lacking if not counts.of(name, "")]
        if divisible:
            raise DataError(
                f"{_classes(divisible)} {'has' if len(divisible) == 1 else 'have'} no images in the given validation set",
                "add some, leave the class out with --exclude, or give no validation set to have one split off",
            )


def _require_enough(counts: _Counts) -> None:
    short = [name for name in counts.classes if counts.is_short(name)]
    if not short:
        return
    needed, has_train = counts.needed(short[0]), counts.of(short[0], "train") > 0
    parts = [
        *(["1 to train"] if not has_train else []),
        *(["1 to validate"] if not counts.has_val else []),
        *(["1 to test"] if counts.new_test else []),
    ]
    shown = few([f"'{name}' ({counts.of(name, '')})" for name in short])
    raise DataError(
        f"too few images to split in {shown}: each class needs "
        f"at least {pluralize(needed, 'image')}, {' and '.join(parts)}",
        f"add images, or leave the class out with --exclude{'; --test-fraction 0 needs one fewer' * counts.new_test}",
    )


def _twins(classes: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return groups of classes whose names look alike, and in what they differ."""
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


def names(group: Iterable[str]) -> str:
    """Return class names in quotes; those that look the same as another are followed by their escapes."""
    shown = list(group)
    seen = Counter(unicodedata.normalize("NFC", name) for name in shown)
    return " and ".join(
        f"'{escape_unprintable(name)}'"
        + (f" ({ascii(name)[1:-1]})" if seen[unicodedata.normalize("NFC", name)] > 1 else "")
        for name in shown
    )


def _classes(group: list[str]) -> str:
    return f"class{'es' * (len(group) > 1)} " + few([f"'{name}'" for name in group])
