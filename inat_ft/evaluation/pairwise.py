"""Two classifiers compared, as far as their records allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations

from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.metrics import METRICS
from inat_ft.evaluation.predictions import Predictions, align
from inat_ft.evaluation.significance import (
    ALPHA,
    Difference,
    Sample,
    compare_samples,
    holm,
    holm_levels,
    mcnemar,
    unpaired_difference,
)


class Reason(StrEnum):
    """Why two classifiers cannot be compared, or only roughly."""

    NO_SCORE = "no score"
    DIFFERENT_IMAGES = "different images"
    NO_PREDICTIONS = "no predictions"
    UNKNOWN_SIZE = "unknown size"
    SINGLE_SEED = "single seed"
    NO_VARIATION = "no variation"


@dataclass(frozen=True)
class PairwiseResult:
    """Two classifiers compared; differences are the first one's metric minus the second one's.

    p: of McNemar's exact test for accuracy, of the bounds for other metrics and groups; p_holm: corrected
    for all pairs, since the test set also decides which classifier is best. The interval of the difference has the level
    at which Holm's procedure tests the pair: with two classifiers 95 %. only_first, only_second: images on which only that
    one is right. agreement: share of images with the same prediction. same: equivalent within the margin asked for.
    """

    first: str
    second: str
    difference: Difference | None
    p: float | None = None
    p_holm: float | None = None
    n_first_only: int | None = None
    n_second_only: int | None = None
    agreement: float | None = None
    equivalent: bool | None = None
    reason: Reason | None = None
    """Why the two cannot be compared, or only roughly; None when they can."""
    not_comparable: str = ""
    """The reason in words."""

    @property
    def different_images(self) -> bool:
        """Whether they were tested on different images, labels or classes."""
        return self.reason is Reason.DIFFERENT_IMAGES

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant after correction for several tests; without predictions none is."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class _Aligned:
    """An entry on the reference's images, in their order."""

    candidate: Candidate
    predictions: list[Predictions]
    sample: Sample

    @property
    def is_group(self) -> bool:
        return len(self.predictions) > 1


def compare_pairs(candidates: Sequence[Candidate], metric: str, margin: float | None) -> list[PairwiseResult]:
    """The reference against each other entry. entries: the best score first, two at least.

    The reference is the best of the groups of seeds with predictions; where there is none, of those with predictions; then
    of those that say on how many images they were measured; else the best.
    """
    reference = max(
        candidates, key=lambda candidate: (candidate.evidence, len(candidate.predictions) > 1)
    )  # of equals the best
    others = [candidate for candidate in candidates if candidate is not reference]
    judged, obstacles = _judge(reference, others, metric)
    tested = _tested(list(judged.values()), metric, margin)
    pairs = []
    for other in others:
        if id(other) in judged:
            pairs.append(tested[id(other)])
        else:
            pairs.append(_unpaired(reference, other, metric, obstacles.get(id(other), "")))
    return pairs


def _judge(
    reference: Candidate, others: Sequence[Candidate], metric: str
) -> tuple[dict[int, _Aligned], dict[int, str]]:
    """The entries that were tested on the reference's images, and why others with predictions were not, by id."""
    judged: dict[int, _Aligned] = {}
    obstacles: dict[int, str] = {}
    if reference.evidence < 3:
        return judged, obstacles
    base = reference.predictions[0]
    for candidate in (reference, *others):
        if candidate.evidence < 3:
            continue
        aligned = []
        for predictions in candidate.predictions:
            found = align(base, predictions)
            if isinstance(found, str):
                obstacles[id(candidate)] = found
                break
            aligned.append(found)
        else:
            judged[id(candidate)] = _Aligned(candidate, aligned, Sample([METRICS[metric](p) for p in aligned]))
    return judged, obstacles


def _tested(judged: list[_Aligned], metric: str, margin: float | None) -> dict[int, PairwiseResult]:
    """The first against each other one, by the other's id; p and interval corrected over the pairs of all of them."""
    chosen = [(a, b) for a, b in combinations(judged, 2) if a.is_group == b.is_group]
    ps = [compare_samples(a.sample, b.sample).p for a, b in chosen]
    known = [1.0 if p is None else p for p in ps]
    tested = {}
    for (a, b), p, corrected, level in zip(chosen, ps, holm(known), holm_levels(known), strict=True):
        if a is judged[0]:
            tested[id(b.candidate)] = _paired(a, b, metric, margin, level, None if p is None else corrected)
    for other in judged[1:]:
        if other.is_group != judged[0].is_group:
            tested[id(other.candidate)] = _single_seed(judged[0], other)
    return tested


def _paired(
    a: _Aligned, b: _Aligned, metric: str, margin: float | None, level: float, p_holm: float | None
) -> PairwiseResult:
    found = compare_samples(a.sample, b.sample, margin, level)
    pair = PairwiseResult(
        a.candidate.name, b.candidate.name, found.difference, found.p, p_holm, equivalent=found.equivalent
    )
    if p_holm is None:
        name = metric.replace("_", " ")
        not_comparable = f"all test images give the same difference in {name}, so its error cannot be estimated"
        pair = replace(pair, reason=Reason.NO_VARIATION, not_comparable=not_comparable)
    if a.is_group:
        return pair
    first, second = a.predictions[0], b.predictions[0]
    n_first_only, n_second_only, _ = mcnemar(first.correct, second.correct)
    agreement = float((first.predicted == second.predicted).mean())
    return replace(pair, n_first_only=n_first_only, n_second_only=n_second_only, agreement=agreement)


def _single_seed(a: _Aligned, b: _Aligned) -> PairwiseResult:
    single = b if a.is_group else a
    not_comparable = (
        f"{single.candidate.name} has a single seed, so its variance over seeds is unknown; train it with at least one more "
        "seed (inat-ft train ... --seed N), or compare without --group"
    )
    return PairwiseResult(
        a.candidate.name, b.candidate.name, None, reason=Reason.SINGLE_SEED, not_comparable=not_comparable
    )


def _unpaired(first: Candidate, second: Candidate, metric: str, not_comparable: str) -> PairwiseResult:
    """obstacle: why their images cannot be matched, where both have predictions."""
    pair = PairwiseResult(first.name, second.name, None)
    if first.score is None or second.score is None:
        unknown = second if second.score is None else first
        not_comparable = f"the {metric.replace('_', ' ')} of {unknown.name} is not known"
        return replace(pair, reason=Reason.NO_SCORE, not_comparable=not_comparable)
    reason = Reason.DIFFERENT_IMAGES
    not_comparable = not_comparable or _unlike(first, second)
    if not not_comparable:
        reason = Reason.NO_PREDICTIONS
        without = " and ".join(candidate.name for candidate in (first, second) if not candidate.predictions)
        not_comparable = f"{without} came without predictions"
    unknown_n = [candidate.name for candidate in (first, second) if candidate.num_test is None]
    if unknown_n:
        do, was = ("does", "it was") if len(unknown_n) == 1 else ("do", "they were")
        names = " and ".join(unknown_n)
        not_comparable = f"{names} {do} not say on how many images {was} measured, so the difference cannot be checked"
        reason = reason if reason is Reason.DIFFERENT_IMAGES else Reason.UNKNOWN_SIZE
        return replace(pair, reason=reason, not_comparable=not_comparable)
    pair = replace(pair, reason=reason, not_comparable=not_comparable)
    if metric != "accuracy" or first.num_test is None or second.num_test is None:
        return pair
    difference = unpaired_difference(first.score.value, first.num_test, second.score.value, second.num_test)
    return replace(pair, difference=difference)


def _unlike(first: Candidate, second: Candidate) -> str:
    """What the records alone say against the two having been tested on the same images; empty when nothing."""
    a, b = first.record, second.record
    if a.classes and b.classes and set(a.classes) != set(b.classes):
        unlike = sorted(set(a.classes) ^ set(b.classes))
        return f"they have different classes ({', '.join(unlike[:3])})"
    prints = [record.test.fingerprint for record in (a, b) if record.test and record.test.fingerprint]
    if len(set(prints)) > 1:
        return "they were tested on different images (their fingerprints differ)"
    return ""
