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
from inat_ft.evaluation.conclusion import conclude
from inat_ft.evaluation.entries import Caveat, Entry, manifest_of_entry, read_entries
from inat_ft.evaluation.metrics import LOWER_IS_BETTER, METRICS
from inat_ft.evaluation.pairs import Pair, pairs_of


@dataclass(frozen=True)
class Comparison:
    """What follows from the records: entries sorted by score, one of them against each other one, one sentence."""

    metric: str
    entries: list[Entry]
    pairs: list[Pair]
    remarks: list[str]
    sentence: str
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
    entries = read_entries(paths, metric, group)
    if len(entries) < 2:
        raise UsageError("a comparison needs two records at least", "inat-ft compare partA.json partB.json")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    entries.sort(key=lambda entry: (entry.score is None, -sign * entry.score.value if entry.score else 0.0))
    _check_leakage(entries)
    pairs = pairs_of(entries, metric, margin)
    return Comparison(metric, entries, pairs, _doubts(entries), conclude(entries, pairs, metric, margin), margin)


def gain(found: Comparison, first: Path, last: Path) -> float | None:
    """By how much the last record beats the first, by their files; positive is better, None cannot be told."""
    entries = {file.resolve(): entry for entry in found.entries for file in entry.files}
    chosen = [entries.get((path / "record.json" if path.is_dir() else path).resolve()) for path in (first, last)]
    a, b = chosen
    if a is None or b is None or a is b:
        return None
    (pair,) = pairs_of([a, b], found.metric, None)
    if pair.difference is None or pair.different_images:
        return None
    value = pair.difference.value if pair.first == b.name else -pair.difference.value
    return -value if found.metric in LOWER_IS_BETTER else value


def _check_leakage(entries: list[Entry]) -> None:
    """Whether any classifier learned from images that it, or one it is compared with, was tested on."""
    for entry in entries:
        if entry.record.split is None:
            if entry.predictions:
                entry.remarks.append(
                    "does not say what it was trained on: whether test images were among it is not known"
                )
            continue
        manifest = manifest_of_entry(entry)
        if manifest is None:
            where = entry.record.split.manifest
            entry.remarks.append(
                f"was trained with {where}, which is missing or has changed: overlap cannot be checked"
            )
            continue
        learned = {(manifest.hashes[row], manifest.paths[row]) for row in manifest.rows("train")}
        hashes, names = {name for name, _ in learned}, {path for _, path in learned}
        for other in entries:
            if other.predictions and (seen := _seen(other, manifest, hashes, names)):
                what = "its own test images" if other is entry else f"the test images of {other.name}"
                entry.remarks.append(f"was trained on {seen:,} of {what}: its result there is not valid")
                entry.caveats.add(Caveat.TRAINED_ON_TEST_IMAGES)


def _seen(other: Entry, manifest: Manifest, hashes: set[str], paths: set[str]) -> int:
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


def _doubts(entries: list[Entry]) -> list[str]:
    """What a careful reader would ask about the records, taken together."""
    doubts = [f"{entry.name} {remark}" for entry in entries for remark in entry.remarks]
    for first, second in combinations(entries, 2):
        a, b = ((entry.record.val_accuracy, entry.record.test_accuracy) for entry in (first, second))
        if None not in a and a == b:
            doubts.append(
                f"{first.name} and {second.name} have the very same validation and test accuracy: "
                "was one copied from the other?"
            )
    shown = {entry.name: entry.record.test.tta for entry in entries if entry.record.test and entry.predictions}
    if len(set(shown.values())) > 1:
        mirrored = [name for name, tta in shown.items() if tta != "none"]
        doubts.append(f"{' and '.join(mirrored)} averaged over mirrored images (--tta flip), the others did not")
    for entry in entries:
        record = entry.record
        looks = record.test.look if record.test else None
        if looks and looks > len(entries):
            doubts.append(
                f"{entry.name}: test set evaluated {looks} times; its result is optimistically biased if they chose the model"
            )
        if not record.history and not entry.predictions and record.test_accuracy is not None:
            doubts.append(f"{entry.name} is unverified: it has neither predictions nor learning curves")
    return doubts
