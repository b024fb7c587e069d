"""Which of several classifiers is better, by how much, and how sure that is. Reads records and predictions only.

It says no more than the data allow: what cannot be compared is named, with what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.errors import InatFtError, RecordError, UsageError
from inat_ft.evaluation.conclusion import conclude
from inat_ft.evaluation.metrics import LOWER_IS_BETTER, METRICS, NEED_PROBABILITIES, all_metrics, wilson
from inat_ft.evaluation.predictions import Predictions, read_predictions
from inat_ft.evaluation.significance import (
    Difference,
    equivalent,
    holm,
    mcnemar,
    paired_difference,
    seeds_difference,
    unpaired_difference,
)
from inat_ft.records import Metric, RunRecord, read_record

ALPHA = 0.05


@dataclass
class Entry:
    """One classifier, or several that differ in their seed alone, as compared.

    score: of the metric asked for, on the test set; None when it is not known. predictions: of each member, in the same
    order of images, or empty. remarks: what limits the comparison.
    """

    name: str
    records: list[RunRecord]
    files: list[Path]
    predictions: list[Predictions] = field(default_factory=list)
    score: Metric | None = None
    num_test: int | None = None
    deviation: float | None = None
    """Standard deviation over the seeds."""
    remarks: list[str] = field(default_factory=list)

    @property
    def record(self) -> RunRecord:
        """The first member."""
        return self.records[0]


@dataclass(frozen=True)
class Pair:
    """Two classifiers held against each other: the first is the one that scored better.

    p: of the exact McNemar test, or of the bootstrap for other metrics and groups; p_holm: corrected for all pairs.
    only_first, only_second: images on which only that one is right. same: equivalent within the margin asked for.
    """

    first: str
    second: str
    difference: Difference | None
    p: float | None = None
    p_holm: float | None = None
    only_first: int | None = None
    only_second: int | None = None
    agreement: float | None = None
    same: bool | None = None
    obstacle: str = ""
    """Why the two cannot be compared, or only roughly; empty when they can."""
    different_images: bool = False
    """Whether they were tested on different images, labels or classes."""

    @property
    def is_real(self) -> bool:
        """Whether the difference stands after correction for several tests."""
        if self.difference is None or self.different_images:
            return False
        if self.p_holm is not None:
            return self.p_holm < ALPHA
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True)
class Comparison:
    """What follows from the records: entries sorted by score, pairs of the best with each other one, one sentence."""

    metric: str
    entries: list[Entry]
    pairs: list[Pair]
    remarks: list[str]
    sentence: str
    margin: float | None = None


def compare(
    paths: Sequence[Path], metric: str = "accuracy", group: bool = False, margin: float | None = None
) -> Comparison:
    """Compare records, run directories, or directories of runs.

    group: runs that differ in their seed alone count as one. margin: difference below which two count as equivalent.
    Raises UsageError or RecordError naming what is amiss.
    """
    if metric not in METRICS:
        raise UsageError(f"unknown metric '{metric}'", f"known: {', '.join(METRICS)}")
    entries = [_entry([record], [file], metric) for record, file in _read(paths)]
    if group:
        entries = _grouped(entries, metric)
    if len(entries) < 2:
        raise UsageError("a comparison needs two records at least", "inat-ft compare partA.json partB.json")
    _name_apart(entries)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    entries.sort(key=lambda entry: (entry.score is None, -sign * entry.score.value if entry.score else 0.0))
    _check_leakage(entries)
    best, *others = entries
    pairs = _corrected([_pair(best, other, metric, margin) for other in others])
    return Comparison(metric, entries, pairs, _doubts(entries), conclude(entries, pairs, metric, margin), margin)


def _read(paths: Sequence[Path]) -> list[tuple[RunRecord, Path]]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not (path / "record.json").exists():
            inside = sorted(file.parent for file in path.glob("*/record.json"))
            if not inside:
                raise RecordError(f"{path} holds no run: there is no record.json in it or in its folders")
            found += inside
        else:
            found.append(path)
    if len({path.resolve() for path in found}) < len(found):
        raise UsageError("the same record is named twice")
    return [read_record(path) for path in found]


def _entry(records: list[RunRecord], files: list[Path], metric: str) -> Entry:
    record, file = records[0], files[0]
    entry = Entry(record.name, records, files)
    name = record.predictions.get("test")
    if name is not None:
        try:
            entry.predictions = [read_predictions(file.parent / name)]
        except InatFtError as error:
            entry.remarks.append(f"its predictions cannot be read: {error.message}")
    if entry.predictions:
        _score_predictions(entry, metric)
    elif record.test_accuracy is None:
        entry.remarks.append("has not been evaluated on a test set: inat-ft eval")
    elif metric != "accuracy":
        entry.remarks.append(f"has no predictions, so its {metric} cannot be computed")
    else:
        entry.num_test = record.num_test
        if record.num_test is None:
            entry.score = Metric(value=record.test_accuracy)
            entry.remarks.append("does not say how many test images it was measured on: its accuracy cannot be checked")
        else:
            entry.score = wilson(round(record.test_accuracy * record.num_test), record.num_test)
            entry.score = entry.score.model_copy(update={"value": record.test_accuracy})
            entry.remarks.append("has no predictions, so only unpaired intervals are possible")
    return entry


def _score_predictions(entry: Entry, metric: str) -> None:
    predictions, record = entry.predictions[0], entry.record
    entry.num_test = len(predictions)
    if metric in NEED_PROBABILITIES and predictions.probabilities is None:
        entry.remarks.append(f"its predictions hold no probabilities, so its {metric} cannot be computed")
        return
    known = record.test.metrics.get(metric) if record.test else None
    entry.score = known or all_metrics(predictions)[0][metric]
    claimed, counted = record.test_accuracy, float(predictions.correct.mean())
    if claimed is not None and abs(claimed - counted) > 0.5 / len(predictions):
        entry.remarks.append(f"claims an accuracy of {claimed:.4f}, but its predictions come to {counted:.4f}")


def _grouped(entries: list[Entry], metric: str) -> list[Entry]:
    """Runs with one configuration but different seeds, as one entry with mean and standard deviation."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        config = {key: value for key, value in entry.record.config.items() if key not in ("seed", "name", "track")}
        key = json.dumps(config, sort_keys=True) if config else f"foreign {entry.name}"
        groups.setdefault(key, []).append(entry)
    return [members[0] if len(members) == 1 else _merge(members, metric) for members in groups.values()]


def _merge(members: list[Entry], metric: str) -> Entry:
    first = members[0]
    seeds = ", ".join(str(member.record.seed) for member in members)
    merged = Entry(
        f"{first.name} and {len(members) - 1} more seeds", [m.record for m in members], [m.files[0] for m in members]
    )
    merged.remarks = [f"mean of {len(members)} runs with the seeds {seeds}"]
    scores = [member.score.value for member in members if member.score]
    if len(scores) == len(members):
        mean, deviation = float(np.mean(scores)), float(np.std(scores, ddof=1))
        merged.score, merged.deviation, merged.num_test = Metric(value=mean), deviation, first.num_test
    aligned = [align(first, member)[1] for member in members[1:] if first.predictions and member.predictions]
    if len(aligned) == len(members) - 1 and all(predictions is not None for predictions in aligned):
        merged.predictions = [
            first.predictions[0],
            *(predictions for predictions in aligned if predictions is not None),
        ]
    return merged


def _name_apart(entries: list[Entry]) -> None:
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            entry.name = f"{entry.name} ({entry.files[0].parent.name or entry.files[0].name})"


def align(first: Entry, second: Entry) -> tuple[str, Predictions | None]:
    """The second's predictions in the order of the first's images, matched by content, else by path.

    Returns an obstacle and None when the images, labels or classes are not the same.
    """
    a, b = first.predictions[0], second.predictions[0]
    if set(a.classes) != set(b.classes):
        unlike = sorted(set(a.classes) ^ set(b.classes))
        return f"they tell different classes apart ({', '.join(unlike[:3])})", None
    by_content = all(a.hashes) and all(b.hashes)
    keys_a, keys_b = (a.hashes, b.hashes) if by_content else (a.paths, b.paths)
    if sorted(keys_a) != sorted(keys_b):
        shared = len(set(keys_a) & set(keys_b))
        return f"they were tested on different images ({shared:,} in common)", None
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys_b):
        places.setdefault(key, []).append(place)
    order = np.array([places[key].pop(0) for key in keys_a])
    recode = np.array([a.classes.index(name) for name in b.classes])
    true, predicted = recode[b.true][order], recode[b.predicted][order]
    if (true != a.true).any():
        return f"they give {int((true != a.true).sum()):,} test images different labels", None
    probabilities = None if b.probabilities is None else b.probabilities[:, np.argsort(recode)][order]
    return "", Predictions(a.classes, a.paths, a.hashes, true, predicted, probabilities)


def _pair(first: Entry, second: Entry, metric: str, margin: float | None) -> Pair:
    if first.score is None or second.score is None:
        unknown = second if second.score is None else first
        return Pair(first.name, second.name, None, obstacle=f"the {metric} of {unknown.name} is not known")
    if first.predictions and second.predictions:
        obstacle, aligned = align(first, second)
        if aligned is not None:
            return _paired(first, second, aligned, metric, margin)
        return replace(_unpaired(first, second, metric, obstacle), different_images=True)
    missing = " and ".join(entry.name for entry in (first, second) if not entry.predictions)
    return _unpaired(first, second, metric, f"{missing} came without predictions")


def _paired(first: Entry, second: Entry, aligned: Predictions, metric: str, margin: float | None) -> Pair:
    a = first.predictions[0]
    if len(first.predictions) > 1 or len(second.predictions) > 1:
        others = [
            aligned,
            *(p for p in (align(first, _alone(second, m))[1] for m in second.predictions[1:]) if p is not None),
        ]
        difference, drawn = seeds_difference(first.predictions, others, metric)
        p = _bootstrap_p(drawn)
        return Pair(first.name, second.name, difference, p, same=_same(drawn, margin))
    difference, drawn = paired_difference(a, aligned, metric)
    only_first, only_second, exact = mcnemar(a.correct, aligned.correct)
    return Pair(
        first.name,
        second.name,
        difference,
        exact if metric == "accuracy" else _bootstrap_p(drawn),
        only_first=only_first,
        only_second=only_second,
        agreement=float((a.predicted == aligned.predicted).mean()),
        same=_same(drawn, margin),
    )


def _alone(entry: Entry, predictions: Predictions) -> Entry:
    return Entry(entry.name, entry.records, entry.files, [predictions])


def _same(drawn: np.ndarray, margin: float | None) -> bool | None:
    return None if margin is None else equivalent(drawn, margin)


def _bootstrap_p(drawn: np.ndarray) -> float:
    """Two-sided: twice the share of bootstrap samples on the far side of 0, with one added for the sample itself."""
    count = len(drawn) + 1
    return float(min(1.0, 2 * min(((drawn <= 0).sum() + 1) / count, ((drawn >= 0).sum() + 1) / count)))


def _unpaired(first: Entry, second: Entry, metric: str, obstacle: str) -> Pair:
    assert first.score is not None and second.score is not None
    if metric != "accuracy" or first.num_test is None or second.num_test is None:
        unknown = [entry.name for entry in (first, second) if entry.num_test is None]
        if unknown:
            obstacle = f"{' and '.join(unknown)} does not say on how many images, so the difference cannot be checked"
        return Pair(first.name, second.name, None, obstacle=obstacle)
    difference = unpaired_difference(first.score.value, first.num_test, second.score.value, second.num_test)
    return Pair(first.name, second.name, difference, obstacle=obstacle)


def _corrected(pairs: list[Pair]) -> list[Pair]:
    tested = [number for number, pair in enumerate(pairs) if pair.p is not None]
    corrected = dict(zip(tested, holm([pairs[number].p or 0.0 for number in tested]), strict=True))
    return [
        replace(pair, p_holm=corrected[number]) if number in corrected else pair for number, pair in enumerate(pairs)
    ]


def _check_leakage(entries: list[Entry]) -> None:
    """Whether any classifier learned from images that it, or one it is compared with, was tested on."""
    manifests: dict[int, Manifest | None] = {}
    for number, entry in enumerate(entries):
        manifests[number] = manifest_of_entry(entry)
    for number, entry in enumerate(entries):
        manifest = manifests[number]
        if manifest is None:
            continue
        learned = {manifest.hashes[row] for row in manifest.rows("train")}
        for other in entries:
            if other.predictions:
                seen = sum(name in learned for name in other.predictions[0].hashes)
                if seen:
                    what = "its own test images" if other is entry else f"the test images of {other.name}"
                    entry.remarks.append(f"was trained on {seen:,} of {what}: its result there means nothing")


def manifest_of_entry(entry: Entry) -> Manifest | None:
    """The manifest that an entry was trained with, if it is still there unchanged."""
    split = entry.record.split
    if split is None:
        return None
    try:
        manifest = read_manifest((entry.files[0].parent / split.manifest).resolve())
    except InatFtError:
        return None
    return manifest if manifest.fingerprint == split.fingerprint else None


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
    for entry in entries:
        record = entry.record
        looks = record.test.look if record.test else None
        if looks and looks > len(entries):
            doubts.append(
                f"{entry.name} was measured at look number {looks} at this test set: if looks chose it, it seems too good"
            )
        if not record.history and not entry.predictions and record.test_accuracy is not None:
            doubts.append(
                f"{entry.name} has neither predictions nor learning curves: nothing but its own word speaks for it"
            )
    return doubts
