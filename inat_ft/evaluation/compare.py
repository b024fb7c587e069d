"""Which of several classifiers is better, by how much, and how sure that is. Reads records and predictions only.

It says no more than the data allow: what cannot be compared is named, with what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from inat_ft.data.manifest import Manifest
from inat_ft.errors import UsageError
from inat_ft.evaluation.candidates import Candidate, Caveat, manifest_of_candidate, read_candidates
from inat_ft.evaluation.metrics import LOWER_IS_BETTER, METRICS
from inat_ft.evaluation.pairwise import PairwiseResult, compare_pairs
from inat_ft.evaluation.verdict import summarize


@dataclass(frozen=True)
class Comparison:
    """What follows from the records: entries sorted by score, one of them against each other one, one sentence."""

    metric: str
    candidates: list[Candidate]
    pairs: list[PairwiseResult]
    remarks: list[str]
    summary: str
    margin: float | None = None

    @property
    def reference(self) -> str:
        """The entry that the others are held against: the best of those whose results are borne out best."""
        return self.pairs[0].first


def compare(
    paths: Sequence[Path], metric: str = "accuracy", group: bool = False, margin: float | None = None
) -> Comparison:
    """Compare records, run directories, or directories of runs.

    group: runs that differ in their seed alone count as one. margin: difference below which two count as equivalent.
    Raises UsageError or RecordError naming what is amiss.
    """
    if metric not in METRICS:
        raise UsageError(f"unknown metric '{metric}'", f"known: {', '.join(METRICS)}")
    candidates = read_candidates(paths, metric, group)
    if len(candidates) < 2:
        raise UsageError("a comparison needs two records at least", "inat-ft compare partA.json partB.json")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    candidates.sort(
        key=lambda candidate: (candidate.score is None, -sign * candidate.score.value if candidate.score else 0.0)
    )
    _check_leakage(candidates)
    pairs = compare_pairs(candidates, metric, margin)
    return Comparison(
        metric, candidates, pairs, _doubts(candidates), summarize(candidates, pairs, metric, margin), margin
    )


def improvement(found: Comparison, first: Path, last: Path) -> float | None:
    """By how much the last record beats the first, by their files; positive is better, None cannot be told."""
    candidates = {file.resolve(): candidate for candidate in found.candidates for file in candidate.files}
    chosen = [candidates.get((path / "record.json" if path.is_dir() else path).resolve()) for path in (first, last)]
    a, b = chosen
    if a is None or b is None or a is b:
        return None
    (pair,) = compare_pairs([a, b], found.metric, None)
    if pair.difference is None or pair.different_images:
        return None
    value = pair.difference.value if pair.first == b.name else -pair.difference.value
    return -value if found.metric in LOWER_IS_BETTER else value


def _check_leakage(candidates: list[Candidate]) -> None:
    """Whether any classifier learned from images that it, or one it is compared with, was tested on."""
    for candidate in candidates:
        if candidate.record.split is None:
            if candidate.predictions:
                candidate.remarks.append(
                    "does not say what it was trained on: whether test images were among it is not known"
                )
            continue
        manifest = manifest_of_candidate(candidate)
        if manifest is None:
            where = candidate.record.split.manifest
            candidate.remarks.append(
                f"was trained with {where}, which is missing or has changed: overlap cannot be checked"
            )
            continue
        learned = {(manifest.hashes[row], manifest.paths[row]) for row in manifest.rows("train")}
        hashes, names = {name for name, _ in learned}, {path for _, path in learned}
        for other in candidates:
            if other.predictions and (seen := _seen(other, manifest, hashes, names)):
                what = "its own test images" if other is candidate else f"the test images of {other.name}"
                candidate.remarks.append(f"was trained on {seen:,} of {what}: its result there is not valid")
                candidate.caveats.add(Caveat.TRAINED_ON_TEST_IMAGES)


def _seen(other: Candidate, manifest: Manifest, hashes: set[str], paths: set[str]) -> int:
    """How many of the test images were learned, by content; where only paths are known, by their ends."""
    predictions = other.predictions[0]
    if all(predictions.hashes):
        return sum(name in hashes for name in predictions.hashes)
    known = set(manifest.paths) - paths
    count = 0
    for path in predictions.paths:
        parts = path.replace("\\", "/").split("/")
        ends = {"/".join(parts[start:]) for start in range(len(parts))}
        count += bool(ends & paths) and not ends & known
    return count


def _doubts(candidates: list[Candidate]) -> list[str]:
    """What a careful reader would ask about the records, taken together."""
    doubts = [f"{candidate.name} {info}" for candidate in candidates for info in candidate.remarks]
    for first, second in combinations(candidates, 2):
        a, b = ((candidate.record.val_accuracy, candidate.record.test_accuracy) for candidate in (first, second))
        if None not in a and a == b:
            doubts.append(
                f"{first.name} and {second.name} have the very same validation and test accuracy: "
                "was one copied from the other?"
            )
    shown = {
        candidate.name: candidate.record.test.tta
        for candidate in candidates
        if candidate.record.test and candidate.predictions
    }
    if len(set(shown.values())) > 1:
        mirrored = [name for name, tta in shown.items() if tta != "none"]
        doubts.append(f"{' and '.join(mirrored)} averaged over mirrored images (--tta flip), the others did not")
    for candidate in candidates:
        record = candidate.record
        looks = record.test.look if record.test else None
        if looks and looks > len(candidates):
            doubts.append(
                f"{candidate.name}: test set evaluated {looks} times; "
                f"its result is optimistically biased if they chose the model"
            )
        if not record.history and not candidate.predictions and record.test_accuracy is not None:
            doubts.append(f"{candidate.name} is unverified: it has neither predictions nor learning curves")
    return doubts
