"""The conclusion of a comparison in plain sentences that claim no more than the data allow."""

from __future__ import annotations

from collections.abc import Sequence

from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.caveats import WAY_OUT, NotComparable, Reason, listed
from inat_ft.evaluation.pairwise import PairwiseResult
from inat_ft.evaluation.significance import Difference
from inat_ft.metrics.base import Metric


def summarize(
    candidates: Sequence[Candidate], pairs: Sequence[PairwiseResult], metric: Metric, margin: float | None
) -> str:
    """Return the conclusion. candidates: the best first; pairs: one of them against each other one."""
    if candidates[0].score is None:
        return f"No conclusion: no classifier has been evaluated on a test set or has predictions. {WAY_OUT}"
    if any(caveat.is_leak for candidate in candidates for caveat in candidate.caveats):
        return "No conclusion: a classifier was trained on images that it is tested on."
    if len(pairs) == 1:
        return _of_two(pairs[0], metric, margin)
    return _of_many(pairs, metric, margin)


def _of_two(pair: PairwiseResult, metric: Metric, margin: float | None) -> str:
    difference = pair.difference
    if difference is None or (pair.not_comparable and pair.not_comparable.kind is Reason.NO_VARIATION):
        return _no_conclusion(pair)
    first_is_ahead = (difference.value >= 0) == metric.higher_is_better or difference.value == 0
    first, second = (pair.first, pair.second) if first_is_ahead else (pair.second, pair.first)
    size, interval = _size(difference, metric)
    if pair.different_data:
        return f"{_no_conclusion(pair)} The difference of {size} ({interval}) can come from the images alone."
    if not pair.is_tested:
        chance = "excludes" if difference.excludes_zero else "does not exclude"
        return (
            f"As reported, {first} is ahead of {second} by {size} in {metric.label} (unpaired {interval}, which {chance} 0). "
            f"This cannot be verified: {_reason(pair)}. {WAY_OUT}"
        )
    evidence = f"({interval}, p = {pair.p_holm:.2g})"
    within = f"{_number(margin or 0, metric)}{_unit(metric)}"
    if pair.is_significant:
        small = f" The difference is within the margin of {within}." if pair.equivalent else ""
        counts = ""
        if pair.n_first_only is not None and pair.n_second_only is not None:
            counts = f" Only {pair.first} is correct on {pair.n_first_only:,} images, "
            counts += f"only {pair.second} on {pair.n_second_only:,}."
        return f"{first} is better than {second} by {size} in {metric.label} {evidence}.{small}{counts}"
    if pair.equivalent:
        return (
            f"{first} and {second} are equivalent within {within}: they differ by {size} in {metric.label} {evidence}."
        )
    unproven = "" if pair.equivalent is None else f" They are not shown to be equivalent within {within} either."
    return (
        f"{first} and {second} are not significantly different on these test images: they differ by {size} in "
        f"{metric.label} {evidence}.{unproven}"
    )


def _no_conclusion(pair: PairwiseResult) -> str:
    unverified = pair.not_comparable is not None and pair.not_comparable.is_unverified
    return f"No conclusion: {_reason(pair)}.{f' {WAY_OUT}' if unverified else ''}"


def _reason(pair: PairwiseResult) -> str:
    return pair.not_comparable.text if pair.not_comparable else "a test is not possible"


def _of_many(pairs: Sequence[PairwiseResult], metric: Metric, margin: float | None) -> str:
    """Rank only results that can be tested; name the others."""
    tested = [pair for pair in pairs if pair.is_tested]
    left_out = [(pair.second, pair.not_comparable) for pair in pairs if not pair.is_tested and pair.not_comparable]
    if not tested:
        return _no_conclusion(pairs[0])
    parts = []
    if beaten := [pair.second for pair in tested if pair.is_significant]:
        parts.append(f"It is better than {listed(beaten)}.")
    if level := [f"{pair.second} (p = {pair.p_holm:.2g})" for pair in tested if not pair.is_significant]:
        parts.append(f"It is not significantly different from {listed(level)} on these test images.")
    if margin is not None and (equivalent := [pair.second for pair in tested if pair.equivalent]):
        parts.append(f"It is equivalent to {listed(equivalent)} within {_number(margin, metric)}{_unit(metric)}.")
    groups: dict[str, list[str]] = {}
    for name, reason in left_out:
        groups.setdefault(_short(reason), []).append(name)
    for reason_text, names in groups.items():
        has, was = ("has", "was") if len(names) == 1 else ("have", "were")
        parts.append(f"It cannot be compared with {listed(names)}, {reason_text.format(has=has, was=was)}.")
    among = " of those that can be checked" if left_out else ""
    return f"{pairs[0].first} has the best {metric.label}{among}. {' '.join(parts)} Tests are Holm-corrected for all pairs."


def _short(reason: NotComparable) -> str:
    if reason.different_data:
        return "which {was} tested on different images, labels or classes"
    return {
        Reason.SINGLE_SEED: "which {has} a single seed",
        Reason.NO_VARIATION: "because all test images give the same difference",
    }.get(reason.kind, "which {has} no predictions")


def _size(difference: Difference, metric: Metric) -> tuple[str, str]:
    """Return the size of a difference, and its interval as seen from the one that is ahead."""
    sign = 1 if difference.value >= 0 else -1
    low, high = sorted((sign * difference.low, sign * difference.high))
    size = f"{_number(abs(difference.value), metric)}{_unit(metric)}"
    return size, f"95 % interval {_number(low, metric)} to {_number(high, metric)}"


def _number(value: float, metric: Metric) -> str:
    """Return a difference: in percentage points for shares, else as it is."""
    text = f"{100 * value:.2f}" if metric.unit == "%" else f"{value:.4f}"
    return text.lstrip("-") if float(text) == 0 else text


def _unit(metric: Metric) -> str:
    return " points" if metric.unit == "%" else f" {metric.unit}" if metric.unit else ""
