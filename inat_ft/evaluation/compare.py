"""Which of several classifiers is better, by how much, and how certain that is. Reads records and predictions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from inat_ft.data.manifest import Manifest
from inat_ft.errors import UsageError
from inat_ft.evaluation.candidates import Candidate, read_candidates
from inat_ft.evaluation.caveats import Caveat, CaveatKind
from inat_ft.evaluation.pairwise import PairwiseResult, compare_pairs
from inat_ft.evaluation.verdict import summarize
from inat_ft.metrics.base import Metric, get_metric


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison: candidates sorted by score, and the reference against each other one."""

    scored_by: Metric
    candidates: list[Candidate]
    pairs: list[PairwiseResult]
    caveats: list[tuple[str, Caveat]]
    """What limits the result: the name of a candidate and its caveat."""
    margin: float | None = None

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.scored_by.name

    @property
    def reference(self) -> str:
        """The candidate that the others are compared with: the best of those with the strongest evidence."""
        return self.pairs[0].first

    @property
    def remarks(self) -> list[str]:
        """The caveats as sentences."""
        return [f"{name} {caveat.text}" for name, caveat in self.caveats]

    @property
    def summary(self) -> str:
        """The conclusion in a few sentences, which claim no more than the data allow."""
        return summarize(self.candidates, self.pairs, self.scored_by, self.margin)


def compare(
    paths: Sequence[Path], metric: str = "accuracy", group: bool = False, margin: float | None = None
) -> Comparison:
    """Compare records, run directories, or directories of runs.

    metric: name of an installed metric. group: treat runs that differ only in their seed as one. margin: difference below
    which two count as equivalent, in the unit of the metric (0.01 is one percentage point of accuracy). Raises UsageError
    or RecordError.
    """
    scored_by = get_metric(metric)
    candidates = read_candidates(paths, scored_by, group)
    if len(candidates) < 2:
        raise UsageError("a comparison needs at least two records", "inat-ft compare partA.json partB.json")
    sign = -1 if scored_by.higher_is_better else 1
    candidates.sort(key=lambda found: (found.score is None, sign * found.score.value if found.score else 0.0))
    _check_leakage(candidates)
    pairs = compare_pairs(candidates, scored_by, margin)
    caveats = [(candidate.name, caveat) for candidate in candidates for caveat in candidate.caveats]
    return Comparison(scored_by, candidates, pairs, caveats + _joint_caveats(candidates), margin)


def improvement(found: Comparison, first: Path, last: Path) -> float | None:
    """Return by how much the last record is better than the first, by their files; None when they are not comparable."""
    candidates = {file.resolve(): candidate for candidate in found.candidates for file in candidate.files}
    a, b = (candidates.get((path / "record.json" if path.is_dir() else path).resolve()) for path in (first, last))
    if a is None or b is None or a is b:
        return None
    (pair,) = compare_pairs([a, b], found.scored_by, None)
    if pair.difference is None or pair.different_data:
        return None
    value = pair.difference.value if pair.first == b.name else -pair.difference.value
    return value if found.scored_by.higher_is_better else -value


def _check_leakage(candidates: list[Candidate]) -> None:
    """Add a caveat where a classifier was trained on images that it, or one it is compared with, was tested on."""
    for candidate in candidates:
        if candidate.record.split is None:
            if candidate.predictions:
                candidate.add(CaveatKind.UNKNOWN_TRAINING_IMAGES)
            continue
        manifest = candidate.manifest()
        if manifest is None:
            candidate.add(CaveatKind.MISSING_MANIFEST, manifest=candidate.record.split.manifest)
            continue
        rows = manifest.rows("train")
        hashes, paths = ({column[row] for row in rows} for column in (manifest.hashes, manifest.paths))
        for other in candidates:
            if other.predictions and (count := _num_trained_on(other, manifest, hashes, paths)):
                if other is candidate:
                    candidate.add(CaveatKind.TRAINED_ON_OWN_TEST_IMAGES, count=count)
                else:
                    candidate.add(CaveatKind.TRAINED_ON_OTHER_TEST_IMAGES, count=count, other=other.name)


def _num_trained_on(tested: Candidate, manifest: Manifest, hashes: set[str], paths: set[str]) -> int:
    """Return how many test images were training images, by content; or by the ends of their paths without hashes."""
    predictions = tested.predictions[0]
    if all(predictions.hashes):
        return sum(name in hashes for name in predictions.hashes)
    known = set(manifest.paths) - paths
    count = 0
    for path in predictions.paths:
        parts = path.replace("\\", "/").split("/")
        ends = {"/".join(parts[start:]) for start in range(len(parts))}
        count += bool(ends & paths) and not ends & known
    return count


def _joint_caveats(candidates: list[Candidate]) -> list[tuple[str, Caveat]]:
    """Return the caveats that depend on several candidates, or on how often the test set was evaluated."""
    found: list[tuple[str, Caveat]] = []
    for first, second in combinations(candidates, 2):
        a, b = ((candidate.record.val_accuracy, candidate.record.test_accuracy) for candidate in (first, second))
        if None not in a and a == b:
            found.append((first.name, Caveat.of(CaveatKind.SAME_ACCURACIES, other=second.name)))
    evaluated = [(c, c.record.test.tta) for c in candidates if c.record.test and c.predictions]
    if len({tta for _, tta in evaluated}) > 1:
        augmented = [candidate for candidate, tta in evaluated if tta != "none"]
        found += [(candidate.name, Caveat.of(CaveatKind.TEST_TIME_AUGMENTATION)) for candidate in augmented]
    for candidate in candidates:
        record = candidate.record
        count = record.test.look if record.test else None
        if count and count > len(candidates):
            found.append((candidate.name, Caveat.of(CaveatKind.REPEATED_TEST_EVALUATIONS, count=count)))
        if not record.history and not candidate.predictions and record.test_accuracy is not None:
            found.append((candidate.name, Caveat.of(CaveatKind.UNVERIFIED)))
    return found
