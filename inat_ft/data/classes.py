"""Checks of the classes: before any image is decoded, and again for the images that remain."""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from inat_ft.data.sources.base import ImageList, LeftOut, Reason
from inat_ft.errors import DataError
from inat_ft.text import escape_unprintable, few, pluralize

_FEW = 10


def check_classes(images: ImageList, test_fraction: float, left_out: Sequence[LeftOut] = ()) -> list[str]:
    """Return warnings about the classes. Raises DataError if they cannot be split.

    test_fraction: of each class, to be reserved for the test; left_out: images of the list that cannot be used.
    """
    skipped = {left.path: left for left in left_out}
    rows = [row for row in images.rows if row.path not in skipped]
    given = {row.subset for row in rows}
    has_val, new_test = "val" in given, test_fraction > 0 and "test" not in given
    divided = ("", "train") if not given & {"val", ""} else ("",)
    counts: dict[str, Counter[str]] = {name: Counter() for name in sorted(images.classes)}
    for row in rows:
        counts[row.label]["" if row.subset in divided else row.subset] += 1
    similar = _similar_names(images.classes)
    _require_images(images, counts, skipped)
    _require_training(images, counts, skipped, similar)
    if has_val and (lacking := [name for name, count in counts.items() if not (count["val"] or count[""])]):
        raise DataError(
            f"{_classes(lacking)} no images in the given validation set",
            "add some, leave the class out with --exclude, or remove the validation set to have one split off",
        )
    needed = {name: new_test + (not has_val) + (not count["train"]) for name, count in counts.items()}
    if short := [n for n, count in counts.items() if (count[""] < needed[n] if count[""] else not has_val)]:
        kinds = (("training", not counts[short[0]]["train"]), ("validation", not has_val), ("testing", new_test))
        raise DataError(
            f"too few images in {_numbered({n: counts[n][''] for n in short})}: each class requires at least "
            f"{pluralize(needed[short[0]], 'image')}, {', '.join(f'1 for {kind}' for kind, is_new in kinds if is_new)}",
            f"add images, or leave the class out with --exclude{'; --test-fraction 0 requires one fewer' * new_test}",
        )
    warnings = [f"{sentence}: are they the same class?" for sentence in dict.fromkeys(similar.values())]
    if small := [n for n, count in counts.items() if count[""] and needed[n] > 1 and count.total() < _FEW]:
        warnings.append(
            f"{_numbered({n: counts[n].total() for n in small})}: fewer than {_FEW} images; validation and test results for "
            f"{'this class' if len(small) == 1 else 'these classes'} depend on one or two images"
        )
    if unnamed := [left.path for left in images.left_out if left.reason is Reason.NAME]:
        warnings.append(f"{few(unnamed)}: left out, because the name is not UTF-8; rename it to use it")
    return warnings


def _require_images(images: ImageList, counts: dict[str, Counter[str]], skipped: dict[str, LeftOut]) -> None:
    if len(counts) == 1:
        (name,) = counts
        hint = "give the rows at least two different labels"
        if not images.listing:
            hint = "expected: DATA/<class>/*.jpg, a folder for each class"
            if any(path.startswith(f"{name}/") and path.count("/") > 1 for path in images.paths):
                hint += f"\nif the folders in it are the classes: inat-ft split {images.root / name}"
        problem = f"{images.root / images.listing} has a single class, '{escape_unprintable(name)}'"
        raise DataError(f"{problem}: a classifier requires at least two", hint)
    if empty := [name for name, count in counts.items() if not count]:
        causes = [skipped[row.path] for row in images.rows if row.label == empty[0]]
        causes += [left for left in images.left_out if empty[0] in left.path.split("/")]
        raise DataError(
            f"{_classes(empty)} no usable images{_why(causes)}",
            f"add images, or leave the class out: --exclude {shlex.quote(escape_unprintable(empty[0]))}",
        )


def _require_training(
    images: ImageList, counts: dict[str, Counter[str]], skipped: dict[str, LeftOut], similar: dict[str, str]
) -> None:
    for subset, title in (("test", "test"), ("val", "validation")):
        if only := [n for n, count in counts.items() if count[subset] and not (count[""] or count["train"])]:
            rows = (row for row in images.rows if row.label == only[0] and row.subset in ("", "train"))
            causes = [skipped[row.path] for row in rows]
            hint = "add training images, or leave the class out: --exclude"
            if causes and causes[0].reason in (Reason.COPY, Reason.GROUP):
                hint = "form smaller groups with --group-by, or keep these images: --leakage keep"
            elif only[0] in similar:
                hint = "use the same name in every subset"
            why = f" ({similar[only[0]]})" if only[0] in similar else _why(causes)
            raise DataError(f"{_classes(only)} images only in the {title} set, none for training{why}", hint)


def _why(causes: Sequence[LeftOut]) -> str:
    return f": {escape_unprintable(causes[0].path)} is left out ({causes[0].text})" if causes else ""


def _similar_names(classes: Iterable[str]) -> dict[str, str]:
    """Return, for classes whose names differ only in case or Unicode form, a sentence with the names.

    Names that are displayed like another one are shown with their escapes.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        groups[unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())].append(name)
    found = {}
    for group in groups.values():
        is_case = len({unicodedata.normalize("NFC", name) for name in group}) == len(group)
        names = [f"'{escape_unprintable(name) if is_case else ascii(name)[1:-1]}'" for name in group]
        if len(group) > 1:
            sentence = f"{' and '.join(names)} differ only in {'case' if is_case else 'Unicode form'}"
            found.update(dict.fromkeys(group, sentence))
    return found


def _numbered(counts: dict[str, int]) -> str:
    return few([f"'{name}' ({count})" for name, count in counts.items()])


def _classes(names: list[str]) -> str:
    shown = few([f"'{name}'" for name in names])
    return f"classes {shown} have" if len(names) > 1 else f"class {shown} has"
