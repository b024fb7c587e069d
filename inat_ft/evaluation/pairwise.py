"""Classifiers compared in pairs, as far as their records allow, and the conclusion in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

from inat_ft.evaluation.candidates import RECORD_NEW, Candidate, Reason
from inat_ft.evaluation.predictions import align, different_classes
from inat_ft.metrics.base import Metric, Predictions, contributions_of
from inat_ft.metrics.bounds import (
    ALPHA,
    Difference,
    Runs,
    TestResult,
    holm,
    paired,
    seed_variance_test,
    unpaired_difference,
)
from inat_ft.records import RunRecord

_ADVICE = f"To test it, make a record from its predictions: {RECORD_NEW}"
_SHORT = {
    Reason.DIFFERENT_IMAGES: "which {was} tested on different images, labels or classes",
    Reason.SINGLE_SEED: "which {has} a single seed",
    Reason.NO_VARIATION: "because all test images give the same difference",
}


@dataclass(frozen=True)
class PairwiseResult:
    """Two classifiers compared; differences are the metric of the first minus that of the second.

    p: of McNemar's exact test for accuracy, of the bounds for other metrics and groups of images. p_holm: p corrected for
    all pairs, since the test set also decides which classifier is best. The interval of the difference has the level at which
    Holm's procedure tests the pair: 95% for two classifiers. n_first_only, n_second_only: images that only this one gets
    right. agreement: share of images with the same prediction. equivalent: within the given margin. reason: why the two
    cannot be compared, or only roughly; None when they can. obstacle: the reason in words. num_groups: groups of images, such
    as sequences or sites, that the test counts instead of images; None without groups.
    """

    first: str
    second: str
    difference: Difference | None = None
    p: float | None = None
    p_holm: float | None = None
    n_first_only: int | None = None
    n_second_only: int | None = None
    agreement: float | None = None
    equivalent: bool | None = None
    reason: Reason | None = None
    obstacle: str = ""
    num_groups: int | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant after correction for several tests; never without predictions."""
        return self.p_holm is not None and self.p_holm < ALPHA


class _Side(NamedTuple):
    """A candidate on the reference's images, in their order."""

    candidate: Candidate
    predictions: list[Predictions]
    runs: Runs


def compare_pairs(candidates: Sequence[Candidate], metric: Metric, margin: float | None) -> list[PairwiseResult]:
    """Compare the reference with each other candidate. candidates: at least two, the best score first.

    The reference is the best of those with the strongest evidence: groups of seeds with predictions, then predictions, then
    a score with its number of images, then any score.
    """
    reference = max(candidates, key=lambda candidate: (candidate.evidence, len(candidate.predictions) > 1))
    others = [candidate for candidate in candidates if candidate is not reference]
    sides: list[_Side] = []
    obstacles: dict[int, str] = {}
    for candidate in (reference, *others):
        if min(candidate.evidence, reference.evidence) < 3:
            continue
        results = [align(reference.predictions[0], predictions) for predictions in candidate.predictions]
        same = [result for result in results if not isinstance(result, str)]
        if len(same) == len(results):
            sides.append(_Side(candidate, same, [contributions_of(metric, p) for p in same]))
        else:
            obstacles[id(candidate)] = next(result for result in results if isinstance(result, str))
    tested = _test_all(sides, metric, margin)
    return [
        tested.get(id(other)) or _unpaired(reference, other, metric, obstacles.get(id(other), "")) for other in others
    ]


def _test_all(sides: list[_Side], metric: Metric, margin: float | None) -> dict[int, PairwiseResult]:
    """Test the first against each other one, by the other's id; p and interval are corrected for all pairs."""
    pairs = [(a, b) for a, b in combinations(sides, 2) if (len(a.runs) > 1) == (len(b.runs) > 1)]
    ps = [_test(a, b, None, ALPHA).p for a, b in pairs]
    tested = {}
    for (a, b), p, p_holm, level in zip(pairs, ps, *holm([1.0 if p is None else p for p in ps]), strict=True):
        if a is sides[0]:
            found = _test(a, b, margin, level)
            tested[id(b.candidate)] = _paired(a, b, metric, found, None if p is None else p_holm)
    for other in sides[1:]:
        if id(other.candidate) not in tested:
            first, second = sides[0].candidate.name, other.candidate.name
            text = (
                f"{second if len(sides[0].runs) > 1 else first} has a single seed, so its variance over seeds is unknown; "
                "train it with at least one more seed (inat-ft train ... --seed N), or compare without --group"
            )
            tested[id(other.candidate)] = PairwiseResult(first, second, reason=Reason.SINGLE_SEED, obstacle=text)
    return tested


def _test(a: _Side, b: _Side, margin: float | None, alpha: float) -> TestResult:
    if len(a.runs) > 1:
        return seed_variance_test([a.runs, b.runs], margin, alpha)
    return paired(a.runs[0] - b.runs[0], margin, alpha)


def _paired(a: _Side, b: _Side, metric: Metric, found: TestResult, p_holm: float | None) -> PairwiseResult:
    names = a.candidate.name, b.candidate.name
    member = a.runs[0].member
    groups = None if member is None else int(member.max()) + 1
    pair = PairwiseResult(*names, found.difference, found.p, p_holm, equivalent=found.equivalent, num_groups=groups)
    if p_holm is None:
        of = "" if member is None else "groups of "
        text = f"all {of}test images give the same difference in {metric.label}, so its error cannot be estimated"
        pair = replace(pair, reason=Reason.NO_VARIATION, obstacle=text)
    if len(a.runs) > 1:
        return pair
    first, second = a.predictions[0], b.predictions[0]
    return replace(
        pair,
        n_first_only=int((first.correct & ~second.correct).sum()),
        n_second_only=int((second.correct & ~first.correct).sum()),
        agreement=float((first.predicted == second.predicted).mean()),
    )


def _unpaired(first: Candidate, second: Candidate, metric: Metric, obstacle: str) -> PairwiseResult:
    """Compare two scores without a test; obstacle: why their predictions cannot be matched, if both have them."""
    pair = PairwiseResult(first.name, second.name)
    if first.score is None or second.score is None:
        unknown = second if second.score is None else first
        return replace(pair, reason=Reason.NO_SCORE, obstacle=f"the {metric.label} of {unknown.name} is unknown")
    if obstacle := obstacle or _different_records(first.record, second.record):
        pair = replace(pair, reason=Reason.DIFFERENT_IMAGES, obstacle=obstacle)
    elif unknown_size := [candidate.name for candidate in (first, second) if candidate.num_test is None]:
        text = f"the number of test images of {_listed(unknown_size)} is unknown, so the difference cannot be checked"
        pair = replace(pair, reason=Reason.UNKNOWN_SIZE, obstacle=text)
    else:
        without = _listed([candidate.name for candidate in (first, second) if not candidate.predictions])
        pair = replace(pair, reason=Reason.NO_PREDICTIONS, obstacle=f"predictions of {without} are missing")
    if metric.name != "accuracy" or first.num_test is None or second.num_test is None:
        return pair
    difference = unpaired_difference(first.score.value, first.num_test, second.score.value, second.num_test)
    return replace(pair, difference=difference)


def _different_records(a: RunRecord, b: RunRecord) -> str:
    """Return how the records alone show that the two were tested on different images or classes, if they do."""
    if a.classes and b.classes and set(a.classes) != set(b.classes):
        return different_classes(a.classes, b.classes)
    fingerprints = {record.test.fingerprint for record in (a, b) if record.test and record.test.fingerprint}
    return "they were tested on different images (their fingerprints differ)" if len(fingerprints) > 1 else ""


def summarize(
    candidates: Sequence[Candidate],
    pairs: Sequence[PairwiseResult],
    metric: Metric,
    margin: float | None,
    where: str = "on these test images",
) -> str:
    """Return the conclusion. candidates: the best first; pairs: one of them against each other one."""
    if candidates[0].score is None:
        return f"No conclusion: no classifier has been evaluated on a test set or has predictions. {_ADVICE}"
    if any(candidate.leaks for candidate in candidates):
        return "No conclusion: a classifier was trained on images that it is tested on."
    if len(pairs) == 1:
        return _of_two(pairs[0], metric, margin, where)
    return _of_many(pairs, metric, margin, where)


def _of_two(pair: PairwiseResult, metric: Metric, margin: float | None, where: str) -> str:
    difference = pair.difference
    if difference is None or pair.reason is Reason.NO_VARIATION:
        return _no_conclusion(pair)
    first_is_ahead = (difference.value >= 0) == metric.higher_is_better or difference.value == 0
    first, second = (pair.first, pair.second) if first_is_ahead else (pair.second, pair.first)
    sign = 1 if difference.value >= 0 else -1  # the interval is that of the one that is ahead
    low, high = sorted((sign * difference.low, sign * difference.high))
    size = _amount(abs(difference.value), metric)
    interval = f"95% interval {_number(low, metric)} to {_number(high, metric)}"
    if pair.reason is Reason.DIFFERENT_IMAGES:
        return f"{_no_conclusion(pair)} The difference of {size} ({interval}) can come from the images alone."
    if pair.p_holm is None:
        chance = "does not exclude" if difference.low <= 0 <= difference.high else "excludes"
        return (
            f"As reported, {first} is ahead of {second} by {size} in {metric.label} (unpaired {interval}, which {chance} 0). "
            f"This cannot be verified: {pair.obstacle}. {_ADVICE}"
        )
    over = f" over {pair.num_groups:,} groups of images" if pair.num_groups else ""
    evidence = f"({interval}, p = {pair.p_holm:.2g}{over})"
    within = _amount(margin or 0, metric)
    if pair.is_significant:
        small = f" The difference is within the margin of {within}." if pair.equivalent else ""
        counts = ""
        if pair.n_first_only is not None and pair.n_second_only is not None:
            counts = f" Only {pair.first} is correct on {pair.n_first_only:,} images, "
            counts += f"only {pair.second} on {pair.n_second_only:,}."
        return f"{first} is better than {second} by {size} in {metric.label} {evidence}.{small}{counts}"
    differ = f"they differ by {size} in {metric.label} {evidence}."
    if pair.equivalent:
        return f"{first} and {second} are equivalent within {within}: {differ}"
    unproven = "" if pair.equivalent is None else f" They are not shown to be equivalent within {within} either."
    return f"{first} and {second} are not significantly different {where}: {differ}{unproven}"


def _no_conclusion(pair: PairwiseResult) -> str:
    unverified = pair.reason in (Reason.NO_PREDICTIONS, Reason.UNKNOWN_SIZE)
    return f"No conclusion: {pair.obstacle}.{f' {_ADVICE}' if unverified else ''}"


def _of_many(pairs: Sequence[PairwiseResult], metric: Metric, margin: float | None, where: str) -> str:
    tested = [pair for pair in pairs if pair.p_holm is not None]
    left_out = [pair for pair in pairs if pair.p_holm is None]
    if not tested:
        return _no_conclusion(pairs[0])
    parts = []
    if beaten := [pair.second for pair in tested if pair.is_significant]:
        parts.append(f"It is better than {_listed(beaten)}.")
    if level := [f"{pair.second} (p = {pair.p_holm:.2g})" for pair in tested if not pair.is_significant]:
        parts.append(f"It is not significantly different from {_listed(level)} {where}.")
    if margin is not None and (equivalent := [pair.second for pair in tested if pair.equivalent]):
        parts.append(f"It is equivalent to {_listed(equivalent)} within {_amount(margin, metric)}.")
    groups: dict[str, list[str]] = {}
    for pair in left_out:
        why = _SHORT.get(pair.reason or Reason.NO_PREDICTIONS, "which {has} no predictions")
        groups.setdefault(why, []).append(pair.second)
    for reason, names in groups.items():
        has, was = ("has", "was") if len(names) == 1 else ("have", "were")
        parts.append(f"It cannot be compared with {_listed(names)}, {reason.format(has=has, was=was)}.")
    unit = f", over {pairs[0].num_groups:,} groups of images" if pairs[0].num_groups else ""
    among = " of those that can be checked" if left_out else ""
    holm = f"Tests are Holm-corrected for all pairs{unit}."
    return f"{pairs[0].first} has the best {metric.label}{among}. {' '.join(parts)} {holm}"


def _number(value: float, metric: Metric) -> str:
    text = f"{100 * value:.2f}" if metric.unit == "%" else f"{value:.4f}"
    return text.lstrip("-") if float(text) == 0 else text


def _amount(value: float, metric: Metric) -> str:
    unit = "points" if metric.unit == "%" else metric.unit
    return f"{_number(value, metric)} {unit}".rstrip()


def _listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
