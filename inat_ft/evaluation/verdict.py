"""What follows from a comparison, in one plain sentence that claims no more than the data allow."""

from __future__ import annotations

from collections.abc import Sequence

from inat_ft.evaluation.candidates import Candidate, Caveat
from inat_ft.evaluation.contributions import LOWER_IS_BETTER
from inat_ft.evaluation.pairwise import PairwiseResult, Reason

_NO_SHARES = ("log_loss", "brier")
_WAY_OUT = "To have it checked, make a record from its predictions: inat-ft record new predictions.csv --name NAME"
_LEFT_OUT = {
    "tested on different images or classes": (Reason.DIFFERENT_IMAGES,),
    "which has a single seed: train more seeds": (Reason.SINGLE_SEED,),
    "as all images give the same difference": (Reason.NO_VARIATION,),
    "for which there are no predictions": (Reason.NO_PREDICTIONS, Reason.UNKNOWN_SIZE, Reason.NO_SCORE),
}
"""What keeps others from being compared with the reference."""


def summarize(
    candidates: Sequence[Candidate], pairs: Sequence[PairwiseResult], metric: str, margin: float | None
) -> str:
    """One sentence. entries: the best first; pairs: one of them against each other one."""
    if candidates[0].score is None:
        return f"No conclusion: none of them has been evaluated on a test set, or has predictions. {_WAY_OUT}"
    if any(Caveat.TRAINED_ON_TEST_IMAGES in candidate.caveats for candidate in candidates):
        return "No conclusion: a classifier was trained on images that it is tested on."
    if len(pairs) == 1:
        return _of_two(pairs[0], metric, margin)
    return _of_many(pairs, metric.replace("_", " "), margin)


def _of_two(pair: PairwiseResult, metric: str, margin: float | None) -> str:
    difference, name = pair.difference, metric.replace("_", " ")
    if difference is None or pair.reason is Reason.NO_VARIATION:
        return _no_conclusion(pair)
    ahead = difference.value if metric not in LOWER_IS_BETTER else -difference.value
    first, second = (pair.first, pair.second) if ahead >= 0 else (pair.second, pair.first)
    size = _size(pair, metric)
    if pair.different_images:
        return (
            f"No conclusion: {pair.not_comparable}; "
            f"the difference of {size} may come from the images, not the classifiers."
        )
    if pair.p_holm is None:
        chance = "more" if difference.low > 0 or difference.high < 0 else "no more"
        return (
            f"As claimed, {first} is ahead of {second} by {size}, from unpaired intervals: {chance} than the chance of "
            f"drawing test images explains; but {pair.not_comparable}, so neither the claim nor the images can be checked. "
            f"{_WAY_OUT}"
        )
    p, flips = f", p = {pair.p_holm:.2g}", ""
    if pair.n_first_only is not None and pair.n_second_only is not None:
        flips = (
            f"; {pair.first} is right on {pair.n_first_only:,} images where {pair.second} is wrong, "
            f"{pair.second} on {pair.n_second_only:,}"
        )
    within = f"{_number(margin or 0, metric)}{_unit(metric)}"
    if pair.is_significant:
        small = f", a difference within the margin of {within}" if pair.equivalent else ""
        return f"{first} is better than {second}: by {size} in {name}{p}{small}{flips}."
    if pair.equivalent:
        return f"{first} and {second} are equivalent within {within}: they differ by {size} in {name}."
    unproven = "" if pair.equivalent is None else f", nor show that they are equivalent within {within}"
    level = f"{first} and {second} are not significantly different on these test images{unproven}"
    return f"{level}: they differ by {size} in {name}{p}."


def _no_conclusion(pair: PairwiseResult) -> str:
    unverified = pair.reason in (Reason.NO_SCORE, Reason.NO_PREDICTIONS, Reason.UNKNOWN_SIZE)
    return f"No conclusion: {pair.not_comparable}.{f' {_WAY_OUT}' if unverified else ''}"


def _of_many(pairs: Sequence[PairwiseResult], name: str, margin: float | None) -> str:
    """Only results that can be tested are ranked; bare claims are named beside them."""
    reference = pairs[0].first
    tested = [pair for pair in pairs if pair.p_holm is not None]
    beaten = [pair.second for pair in tested if pair.is_significant]
    level = [pair.second for pair in tested if not pair.is_significant]
    if not tested:
        return _no_conclusion(pairs[0])
    parts = []
    if beaten:
        parts.append(f"is better than {_listed(beaten)}")
    if level:
        parts.append(f"is not significantly different from {_listed(level)} on these test images")
    if margin is not None and (equivalent := [pair.second for pair in tested if pair.equivalent]):
        parts.append(f"is equivalent to {_listed(equivalent)} within {margin:g}")
    left_out = [pair for pair in pairs if pair.p_holm is None]
    for text, reasons in _LEFT_OUT.items():
        if names := [pair.second for pair in left_out if pair.reason in reasons]:
            parts.append(f"cannot be compared with {_listed(names)}, {text}")
    among = " of those that can be checked" if left_out else ""
    return f"{reference} has the best {name}{among}; it {', and '.join(parts)} (tests Holm-corrected for all pairs)."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _size(pair: PairwiseResult, metric: str) -> str:
    """The difference with its interval, as seen from the one that is ahead."""
    assert pair.difference is not None
    sign = 1 if pair.difference.value >= 0 else -1
    low, high = sorted((sign * pair.difference.low, sign * pair.difference.high))
    between = f"{_number(low, metric)} to {_number(high, metric)}"
    return f"{_number(abs(pair.difference.value), metric)}{_unit(metric)} (95 % interval {between})"


def _number(value: float, metric: str) -> str:
    """Percentage points of shares, plain numbers of others."""
    text = f"{value:.4f}" if metric in _NO_SHARES else f"{100 * value:.2f}"
    return text.lstrip("-") if float(text) == 0 else text


def _unit(metric: str) -> str:
    return "" if metric in _NO_SHARES else " points"
