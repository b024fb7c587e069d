"""Two classifiers compared, as far as their records allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.caveats import NotComparable, Reason, listed
from inat_ft.evaluation.predictions import align
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
from inat_ft.metrics.base import Metric, contributions_of
from inat_ft.metrics.predictions import Predictions


@dataclass(frozen=True)
class PairwiseResult:
    """Two classifiers compared; differences are the metric of the first minus that of the second.

    p: of McNemar's exact test for accuracy, of the bounds for other metrics and for groups. p_holm: p corrected for all
    pairs, since the test set also decides which classifier is best. The interval of the difference has the level at which
    Holm's procedure tests the pair: 95 % for two classifiers. n_first_only, n_second_only: images that only this one gets
    right. agreement: share of images with the same prediction. equivalent: within the given margin. not_comparable: why the
    two cannot be compared, or only roughly; None when they can.
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
    not_comparable: NotComparable | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant after correction for several tests; never without predictions."""
        return self.p_holm is not None and self.p_holm < ALPHA

    @property
    def is_tested(self) -> bool:
        """Whether there is a test on the same images."""
        return self.p_holm is not None

    @property
    def different_data(self) -> bool:
        """Whether they were tested on different images, labels or classes."""
        return self.not_comparable is not None and self.not_comparable.different_data


@dataclass(frozen=True)
class _Aligned:
    """A candidate on the reference's images, in their order."""

    candidate: Candidate
    predictions: list[Predictions]
    sample: Sample

    @property
    def is_group(self) -> bool:
        return len(self.predictions) > 1


def compare_pairs(candidates: Sequence[Candidate], metric: Metric, margin: float | None) -> list[PairwiseResult]:
    """Compare the reference with each other candidate. candidates: at least two, the best score first.

    The reference is the best of those with the strongest evidence: groups of seeds with predictions, then predictions, then
    a score with its number of images, then any score.
    """
    reference = max(candidates, key=lambda candidate: (candidate.evidence, len(candidate.predictions) > 1))
    others = [candidate for candidate in candidates if candidate is not reference]
    aligned, obstacles = _align_all(reference, others, metric)
    tested = _test_all(aligned, metric, margin)
    return [tested.get(id(other)) or _unpaired(reference, other, metric, obstacles.get(id(other))) for other in others]


def _align_all(
    reference: Candidate, others: Sequence[Candidate], metric: Metric
) -> tuple[list[_Aligned], dict[int, NotComparable]]:
    """Return the candidates tested on the reference's images, and by id why others with predictions were not."""
    found: list[_Aligned] = []
    obstacles: dict[int, NotComparable] = {}
    for candidate in (reference, *others):
        if min(candidate.evidence, reference.evidence) < 3:
            continue
        results = [align(reference.predictions[0], predictions) for predictions in candidate.predictions]
        same = [result for result in results if isinstance(result, Predictions)]
        if len(same) == len(results):
            found.append(_Aligned(candidate, same, Sample([contributions_of(metric, p) for p in same])))
        else:
            obstacles[id(candidate)] = next(result for result in results if isinstance(result, NotComparable))
    return found, obstacles


def _test_all(aligned: list[_Aligned], metric: Metric, margin: float | None) -> dict[int, PairwiseResult]:
    """Test the first against each other one, by the other's id; p and interval are corrected for all pairs."""
    pairs = [(a, b) for a, b in combinations(aligned, 2) if a.is_group == b.is_group]
    ps = [compare_samples(a.sample, b.sample).p for a, b in pairs]
    known = [1.0 if p is None else p for p in ps]
    tested = {}
    for (a, b), p, corrected, level in zip(pairs, ps, holm(known), holm_levels(known), strict=True):
        if a is aligned[0]:
            tested[id(b.candidate)] = _paired(a, b, metric, margin, level, None if p is None else corrected)
    for other in aligned[1:]:
        if other.is_group != aligned[0].is_group:
            single = other if aligned[0].is_group else aligned[0]
            reason = NotComparable.of(Reason.SINGLE_SEED, name=single.candidate.name)
            names = aligned[0].candidate.name, other.candidate.name
            tested[id(other.candidate)] = PairwiseResult(*names, not_comparable=reason)
    return tested


def _paired(
    a: _Aligned, b: _Aligned, metric: Metric, margin: float | None, level: float, p_holm: float | None
) -> PairwiseResult:
    found = compare_samples(a.sample, b.sample, margin, level)
    pair = PairwiseResult(
        a.candidate.name, b.candidate.name, found.difference, found.p, p_holm, equivalent=found.equivalent
    )
    if p_holm is None:
        pair = replace(pair, not_comparable=NotComparable.of(Reason.NO_VARIATION, metric=metric.label))
    if a.is_group:
        return pair
    first, second = a.predictions[0], b.predictions[0]
    n_first_only, n_second_only, _ = mcnemar(first.correct, second.correct)
    agreement = float((first.predicted == second.predicted).mean())
    return replace(pair, n_first_only=n_first_only, n_second_only=n_second_only, agreement=agreement)


def _unpaired(first: Candidate, second: Candidate, metric: Metric, obstacle: NotComparable | None) -> PairwiseResult:
    """Compare two scores without a test; obstacle: why their predictions cannot be matched, if both have them."""
    pair = PairwiseResult(first.name, second.name)
    if first.score is None or second.score is None:
        unknown = second if second.score is None else first
        return replace(pair, not_comparable=NotComparable.of(Reason.NO_SCORE, metric=metric.label, name=unknown.name))
    reason = obstacle or _different_records(first, second)
    without_number = [candidate.name for candidate in (first, second) if candidate.num_test is None]
    if without_number:
        unknown_size = NotComparable.of(Reason.UNKNOWN_SIZE, names=listed(without_number))
        return replace(pair, not_comparable=reason or unknown_size)
    if reason is None:
        without = listed([candidate.name for candidate in (first, second) if not candidate.predictions])
        reason = NotComparable.of(Reason.NO_PREDICTIONS, names=without)
    pair = replace(pair, not_comparable=reason)
    if metric.name != "accuracy" or first.num_test is None or second.num_test is None:
        return pair
    difference = unpaired_difference(first.score.value, first.num_test, second.score.value, second.num_test)
    return replace(pair, difference=difference)


def _different_records(first: Candidate, second: Candidate) -> NotComparable | None:
    """Return whether the records alone show that the two were tested on different images or classes."""
    a, b = first.record, second.record
    if a.classes and b.classes and set(a.classes) != set(b.classes):
        return NotComparable.of(Reason.DIFFERENT_CLASSES, classes=sorted(set(a.classes) ^ set(b.classes))[:3])
    fingerprints = {record.test.fingerprint for record in (a, b) if record.test and record.test.fingerprint}
    return NotComparable.of(Reason.DIFFERENT_FINGERPRINTS) if len(fingerprints) > 1 else None
