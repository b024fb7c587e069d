"""What follows from a comparison, in one plain sentence that claims no more than the data allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inat_ft.evaluation.metrics import LOWER_IS_BETTER

if TYPE_CHECKING:
    from inat_ft.evaluation.compare import Entry, Pair

_NO_SHARES = ("log_loss", "brier")


def conclude(entries: Sequence[Entry], pairs: Sequence[Pair], metric: str, margin: float | None) -> str:
    """One sentence. entries: the best first; pairs: the best against each other one, in the same order."""
    name = metric.replace("_", " ")
    if entries[0].score is None:
        return "None of them has been evaluated on a test set, so there is nothing to compare."
    if any("means nothing" in remark for entry in entries for remark in entry.remarks):
        return "No conclusion: a classifier was trained on images that it is tested on."
    return _of_two(pairs[0], metric, name, margin) if len(pairs) == 1 else _of_many(entries[0], pairs, name)


def _of_two(pair: Pair, metric: str, name: str, margin: float | None) -> str:
    difference = pair.difference
    if difference is None:
        return f"{_upper(pair.obstacle)}: nothing can be said about which is better."
    size = (
        f"{_size(difference.value, metric)}{_unit(metric)} "
        f"(95 % interval {_size(difference.low, metric)} to {_size(difference.high, metric)})"
    )
    if pair.different_images:
        return f"{_upper(pair.obstacle)}: the difference of {size} in {name} may come from the images, not the classifiers."
    if pair.same:
        within = f"{_size(margin or 0, metric)}{_unit(metric)}"
        return f"{pair.first} and {pair.second} are equivalent within {within}: they differ by {size} in {name}."
    p = f", p = {pair.p_holm:.2g}" if pair.p_holm is not None else f", from unpaired intervals, since {pair.obstacle}"
    if not pair.is_real:
        return (
            f"These test images cannot tell {pair.first} and {pair.second} apart: they differ by {size} in {name}{p}."
        )
    flips = ""
    if pair.only_first is not None and pair.only_second is not None:
        flips = (
            f"; {pair.first} is right on {pair.only_first:,} images where {pair.second} is wrong, "
            f"{pair.second} on {pair.only_second:,}"
        )
    return f"{pair.first} is better than {pair.second}: by {size} in {name}{p}{flips}."


def _of_many(best: Entry, pairs: Sequence[Pair], name: str) -> str:
    unknown = [pair.second for pair in pairs if pair.difference is None or pair.different_images]
    beaten = [pair.second for pair in pairs if pair.is_real and pair.second not in unknown]
    level = [pair.second for pair in pairs if pair.second not in (*beaten, *unknown)]
    parts = []
    if beaten:
        parts.append(f"is better than {_listed(beaten)}")
    if level:
        parts.append(f"cannot be told apart from {_listed(level)} by these test images")
    if unknown:
        parts.append(f"cannot be compared with {_listed(unknown)}")
    corrected = " (tests corrected by Holm)" if beaten or level else ""
    return f"{best.name} has the best {name}; it {', and '.join(parts)}{corrected}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _size(value: float, metric: str) -> str:
    """Improvement: percentage points of shares, plain numbers of others, positive when the first is better."""
    value = -value if metric in LOWER_IS_BETTER else value
    return f"{value:.4f}" if metric in _NO_SHARES else f"{100 * value:.2f}"


def _unit(metric: str) -> str:
    return "" if metric in _NO_SHARES else " points"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
