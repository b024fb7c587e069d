"""The classifiers of a comparison: records with their predictions, alone or as several seeds of one configuration."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.errors import InatFtError, RecordError, UsageError
from inat_ft.evaluation.predictions import align, read_predictions
from inat_ft.metrics.base import Metric, Predictions, contributions_of, measure
from inat_ft.metrics.bounds import seed_variance_test
from inat_ft.metrics.builtin import proportion
from inat_ft.paths import FOLDS_SUMMARY
from inat_ft.records import MetricValue, RunRecord, predictions_file, read_record
from inat_ft.registry import FEATURES, get

_IN_FOLDERS = ("record.json", FOLDS_SUMMARY)  # records that have the name of their folder
RECORD_NEW = "inat-ft record new predictions.csv --name NAME --out FILE"  # the record of another program
_FEW = 5  # test images of a class below which macro metrics are uncertain


class Caveat(StrEnum):
    """What limits the result of a classifier. The value continues its name."""

    UNREADABLE = "has predictions that cannot be read: {error}"
    NO_PREDICTIONS = "has no predictions, so its {metric} cannot be computed"
    NOT_EVALUATED = "has no test_accuracy: it has not been evaluated on a test set{command}"
    NO_NUM_TEST = "does not state its number of test images (num_test), so its accuracy cannot be checked"
    UNVERIFIED_CLAIM = "has no predictions: only an unpaired interval is possible, and its accuracy is unverified"
    IMPOSSIBLE_CLAIM = "reports an accuracy of {claimed}, which no number of {number:,} images gives"
    CONTRADICTED = "reports an accuracy of {claimed:.4f}, but its predictions give {computed:.4f}"
    NOT_MOST_PROBABLE = "predicts another class than the most probable one for {count:,} images"
    NO_PROBABILITIES = "has predictions without probabilities, so its {metric} cannot be computed"
    FEW_PER_CLASS = (
        "has fewer than {limit} test images in {few:,} of {classes:,} classes, {fewest} in the rarest: its macro metrics "
        "have wide intervals"
    )
    EXCLUDES_UNTESTED = "excludes {name}, which has no predictions on the test set"
    EXCLUDES_DIFFERENT = "excludes {name}: {difference}"
    EXCLUDES_SEED = "excludes {name}, which has the same seed as {kept}"
    MEAN_OF_SEEDS = "is the mean of {count} runs with the seeds {seeds}"
    UNKNOWN_TRAINING = "does not state its training images: whether test images are among them is unknown"
    LOST_MANIFEST = "was trained with {manifest}, which is missing or has changed: overlap cannot be checked"
    OWN_LEAK = "was trained on {count:,} of its own test images: its test accuracy is invalid"
    OTHER_LEAK = "was trained on {count:,} of the test images of {name}: its result on them is invalid"
    SAME_RESULTS = "has the same validation and test accuracy as {name}: check that they are not the same run"
    OTHER_TTA = "averages predictions over mirrored images (--tta flip); others do not"
    MANY_EVALUATIONS = (
        "has a test set that was evaluated {count} times: its result is optimistically biased if these evaluations were used "
        "to choose the model"
    )
    NO_EVIDENCE = "is unverified: it has neither predictions nor a training history"


class Reason(StrEnum):
    """Why two classifiers have no paired test. The value is the `reason` in `compare --json`."""

    NO_SCORE = "no score"
    DIFFERENT_IMAGES = "different images"
    SINGLE_SEED = "single seed"
    NO_VARIATION = "no variation"
    UNKNOWN_SIZE = "unknown size"
    NO_PREDICTIONS = "no predictions"


@dataclass
class Candidate:
    """One classifier, or several that differ only in their seed.

    predictions: of each member, on the same images in the same order, or empty. score: the metric on the test set; None when
    it is unknown. std: standard deviation over the seeds. caveats: what limits its result, with its text. leaks:
    whether it was trained on test images.
    """

    name: str
    records: list[RunRecord]
    files: list[Path]
    predictions: list[Predictions] = field(default_factory=list)
    score: MetricValue | None = None
    num_test: int | None = None
    std: float | None = None
    caveats: list[tuple[Caveat, str]] = field(default_factory=list)
    leaks: bool = False

    def add(self, caveat: Caveat, **values: Any) -> None:
        if (entry := (caveat, caveat.format(**values))) not in self.caveats:
            self.caveats.append(entry)

    @property
    def record(self) -> RunRecord:
        return self.records[0]

    @property
    def evidence(self) -> int:
        """What its score rests on: 3 predictions, 2 a number of images, 1 a bare claim, 0 without a score."""
        if self.score is None:
            return 0
        return 3 if self.predictions else 2 if self.num_test is not None else 1

    def manifest(self) -> Manifest | None:
        """Return the manifest that it was trained with; None when it is missing or has changed."""
        split = self.record.split
        if split is None:
            return None
        try:
            manifest = read_manifest((self.files[0].parent / split.manifest).resolve())
        except InatFtError:
            return None
        return manifest if manifest.fingerprint == split.fingerprint else None


def read_candidates(paths: Sequence[Path], metric: Metric, group: bool) -> list[Candidate]:
    """Read records, run folders, or folders of runs. Raises UsageError or RecordError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not any((path / name).exists() for name in ("record.json", "config.yaml")):
            inside = sorted(file.parent for file in path.glob("*/record.json"))
            if not inside:
                problem = f"{path} has no runs: neither it nor its folders have a record.json"
                raise RecordError(problem, "pass runs or records")
            found += inside
        else:
            found.append(path)
    records = [read_record(path) for path in found]
    if len({file.resolve() for _, file in records}) < len(found):
        raise UsageError("the same record was passed twice", "remove one of them")
    candidates = [_candidate(record, file, metric) for record, file in records]
    get(FEATURES, "image-groups").load()(candidates, metric)
    if group:
        groups: dict[str, list[Candidate]] = {}
        for number, candidate in enumerate(candidates):
            groups.setdefault(_configuration(candidate.record) or f"foreign {number}", []).append(candidate)
        candidates = [_merge(members, metric) for members in groups.values()]
    distinguish(candidates)
    return candidates


def distinguish(candidates: Sequence[Candidate]) -> None:
    """Add to each name that several candidates share the end of the path of its record, as many parts as differ."""
    names = [candidate.name for candidate in candidates]
    for name in set(names):
        same = [candidate for candidate in candidates if candidate.name == name]
        files = [Path(os.path.abspath(candidate.files[0])) for candidate in same]
        paths = [(file.parent if file.name in _IN_FOLDERS else file).parts for file in files]
        depth = next(n for n in itertools.count(1) if len({path[-n:] for path in paths}) == len(paths))
        for candidate, path in zip(same, paths, strict=True):
            candidate.name = f"{name} ({Path(*path[-depth:]).as_posix()})" if len(same) > 1 else name


def _candidate(record: RunRecord, file: Path, metric: Metric) -> Candidate:
    candidate = Candidate(record.name, [record], [file])
    try:
        if predictions := predictions_file(record, file.parent, "test"):
            candidate.predictions = [read_predictions(predictions)]
    except InatFtError as error:
        candidate.add(Caveat.UNREADABLE, error=error.message)
    if candidate.predictions:
        _score_predictions(candidate, metric)
    elif record.test_accuracy is not None and metric.name != "accuracy":
        candidate.add(Caveat.NO_PREDICTIONS, metric=metric.label)
    elif record.test_accuracy is not None:
        _score_claim(candidate, record.test_accuracy)
    elif "test" not in record.predictions:
        command = f": inat-ft eval {file.parent}" if record.config else f"; to use its predictions: {RECORD_NEW}"
        candidate.add(Caveat.NOT_EVALUATED, command=command)
    return candidate


def _score_claim(candidate: Candidate, claimed: float) -> None:
    number = candidate.record.num_test
    candidate.num_test = number
    if number is None:
        candidate.score = MetricValue(value=claimed)
        candidate.add(Caveat.NO_NUM_TEST)
        return
    candidate.score = proportion(round(claimed * number), number).model_copy(update={"value": claimed})
    candidate.add(Caveat.UNVERIFIED_CLAIM)
    digits = len(repr(claimed).partition(".")[2])
    if abs(round(claimed * number) / number - claimed) > 0.51 * 10**-digits:
        candidate.add(Caveat.IMPOSSIBLE_CLAIM, claimed=claimed, number=number)


def _score_predictions(candidate: Candidate, metric: Metric) -> None:
    """Compute the score from the predictions, whatever the record reports."""
    predictions, record = candidate.predictions[0], candidate.record
    candidate.num_test = len(predictions)
    computed, reported = float(predictions.correct.mean()), {record.test_accuracy}
    if record.test and "accuracy" in record.test.metrics:
        reported.add(record.test.metrics["accuracy"].value)
    for claimed in reported:
        if claimed is not None and abs(claimed - computed) > 0.5 / len(predictions):
            candidate.add(Caveat.CONTRADICTED, claimed=claimed, computed=computed)
    if predictions.probabilities is not None:
        if odd := int((predictions.probabilities.argmax(1) != predictions.predicted).sum()):
            candidate.add(Caveat.NOT_MOST_PROBABLE, count=odd)
    elif metric.needs_probabilities:
        candidate.add(Caveat.NO_PROBABILITIES, metric=metric.label)
        return
    candidate.score = measure(metric, predictions)
    counts = np.unique(predictions.true, return_counts=True)[1]
    few = int((counts < _FEW).sum())
    if few and metric.averages_classes:
        candidate.add(Caveat.FEW_PER_CLASS, limit=_FEW, few=few, classes=len(counts), fewest=counts.min())


def _configuration(record: RunRecord) -> str:
    """Return the settings that decide a result, without seed and paths; "" for records of other programs."""
    if not record.config:
        return ""
    config = {key: value for key, value in record.config.items() if key not in ("seed", "name", "track")}
    config["data"] = {key: value for key, value in config.get("data", {}).items() if key not in ("split", "root")}
    return json.dumps([config, record.split and record.split.fingerprint], sort_keys=True)


def _merge(members: list[Candidate], metric: Metric) -> Candidate:
    """Merge the members that were tested on the first one's images, each seed once."""
    runs, caveats = _by_seed(members)
    if len(runs) == 1:
        runs[0].caveats += caveats
        return runs[0]
    predictions = [member.predictions[0] for member in runs]
    contributions = [contributions_of(metric, p) for p in predictions]
    mean = seed_variance_test([contributions]).difference
    low, high = np.clip((mean.low, mean.high), *metric.bounds).tolist()
    seeds = ", ".join(str(member.record.seed) for member in runs)
    mean_of = Caveat.MEAN_OF_SEEDS
    return Candidate(
        name=f"{runs[0].name} ({len(runs)} seeds)",
        records=[member.record for member in runs],
        files=[member.files[0] for member in runs],
        predictions=predictions,
        score=MetricValue(value=mean.value, low=low, high=high, method=mean.method),
        num_test=len(predictions[0]),
        std=float(np.std([run.value for run in contributions], ddof=1)),
        caveats=[(mean_of, mean_of.format(count=len(runs), seeds=seeds)), *caveats],
    )


def _by_seed(members: list[Candidate]) -> tuple[list[Candidate], list[tuple[Caveat, str]]]:
    """Return the members with predictions on the first one's images, one of each seed, and why others are left out."""
    if len(members) == 1:
        return members, []
    first = next((member for member in members if member.evidence == 3), members[0])
    kept: dict[int | None, Candidate] = {}
    group = Candidate("", [], [])
    for member in members:
        if member.evidence < 3:
            group.add(Caveat.EXCLUDES_UNTESTED, name=member.name)
            continue
        aligned, seed = align(first.predictions[0], member.predictions[0]), member.record.seed
        if isinstance(aligned, str):
            group.add(Caveat.EXCLUDES_DIFFERENT, name=member.name, difference=aligned)
        elif seed in kept:
            group.add(Caveat.EXCLUDES_SEED, name=member.name, kept=kept[seed].name)
        else:
            member.predictions = [aligned]
            kept[seed] = member
    return list(kept.values()) or [first], group.caveats
