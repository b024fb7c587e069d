"""The classifiers of a comparison: records with their predictions, alone or as several seeds of one configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.errors import InatFtError, RecordError, UsageError
from inat_ft.evaluation.caveats import Caveat, CaveatKind, NotComparable
from inat_ft.evaluation.predictions import Predictions, align, read_predictions
from inat_ft.evaluation.significance import Sample, seed_variance_test
from inat_ft.metrics.base import Metric, contributions_of, measure
from inat_ft.metrics.proportions import proportion
from inat_ft.records import MetricValue, RunRecord, read_record

_FEW = 5
"""Test images of a class below which macro metrics are uncertain."""


@dataclass
class Candidate:
    """One classifier, or several that differ only in their seed.

    predictions: of each member, on the same images in the same order, or empty. score: the metric on the test set; None when
    it is unknown. std: standard deviation over the seeds.
    """

    name: str
    records: list[RunRecord]
    files: list[Path]
    predictions: list[Predictions] = field(default_factory=list)
    score: MetricValue | None = None
    num_test: int | None = None
    std: float | None = None
    caveats: list[Caveat] = field(default_factory=list)

    @property
    def record(self) -> RunRecord:
        """The first member."""
        return self.records[0]

    @property
    def evidence(self) -> int:
        """What its score rests on: 3 predictions, 2 a number of images, 1 a bare claim, 0 without a score."""
        if self.score is None:
            return 0
        return 3 if self.predictions else 2 if self.num_test is not None else 1

    def add(self, kind: CaveatKind, **parameters: object) -> None:
        """Add a caveat."""
        self.caveats.append(Caveat.of(kind, **parameters))

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
    """Read records, run directories, or directories of runs. Raises UsageError or RecordError."""
    candidates = [_candidate(record, file, metric) for record, file in _read(paths)]
    if group:
        candidates = _grouped(candidates, metric)
    names = [candidate.name for candidate in candidates]
    for candidate in candidates:
        if names.count(candidate.name) > 1:
            candidate.name = f"{candidate.name} ({candidate.files[0].parent.name or candidate.files[0].name})"
    return candidates


def _read(paths: Sequence[Path]) -> list[tuple[RunRecord, Path]]:
    found: list[Path] = []
    for path in paths:
        is_run = any((path / name).exists() for name in ("record.json", "config.yaml"))
        if path.is_dir() and not is_run:
            inside = sorted(file.parent for file in path.glob("*/record.json"))
            if not inside:
                raise RecordError(f"{path} has no runs: neither it nor its folders have a record.json")
            found += inside
        else:
            found.append(path)
    if len({path.resolve() for path in found}) < len(found):
        raise UsageError("the same record was passed twice")
    return [read_record(path) for path in found]


def _candidate(record: RunRecord, file: Path, metric: Metric) -> Candidate:
    candidate = Candidate(record.name, [record], [file])
    name = record.predictions.get("test")
    if name is not None:
        try:
            candidate.predictions = [read_predictions(file.parent / name)]
        except InatFtError as error:
            candidate.add(CaveatKind.UNREADABLE_PREDICTIONS, error=error.message)
    if candidate.predictions:
        _score_predictions(candidate, metric)
    elif record.test_accuracy is not None and metric.name != "accuracy":
        candidate.add(CaveatKind.NO_PREDICTIONS_FOR_METRIC, metric=metric.label)
    elif record.test_accuracy is not None:
        _score_claim(candidate, record.test_accuracy)
    elif name is None:
        candidate.add(CaveatKind.NOT_EVALUATED, command=f": inat-ft eval {file.parent}" if record.config else "")
    return candidate


def _score_claim(candidate: Candidate, claimed: float) -> None:
    candidate.num_test = number = candidate.record.num_test
    if number is None:
        candidate.score = MetricValue(value=claimed)
        candidate.add(CaveatKind.UNKNOWN_TEST_SIZE)
        return
    candidate.score = proportion(round(claimed * number), number).model_copy(update={"value": claimed})
    candidate.add(CaveatKind.NO_PREDICTIONS)
    digits = len(repr(claimed).partition(".")[2])
    if abs(round(claimed * number) / number - claimed) > 0.51 * 10**-digits:
        candidate.add(CaveatKind.IMPOSSIBLE_ACCURACY, claimed=claimed, number=number)


def _score_predictions(candidate: Candidate, metric: Metric) -> None:
    """Compute the score from the predictions, whatever the record reports."""
    predictions, record = candidate.predictions[0], candidate.record
    candidate.num_test = len(predictions)
    computed, reported = float(predictions.correct.mean()), {record.test_accuracy}
    if record.test and "accuracy" in record.test.metrics:
        reported.add(record.test.metrics["accuracy"].value)
    for claimed in reported - {None}:
        if abs((claimed or 0.0) - computed) > 0.5 / len(predictions):
            candidate.add(CaveatKind.CONTRADICTED_ACCURACY, claimed=claimed, computed=computed)
    if predictions.probabilities is not None:
        odd = int((predictions.probabilities.argmax(1) != predictions.predicted).sum())
        if odd:
            candidate.add(CaveatKind.NOT_MOST_PROBABLE, count=odd)
    elif metric.needs_probabilities:
        candidate.add(CaveatKind.NO_PROBABILITIES, metric=metric.label)
        return
    candidate.score = measure(metric, predictions)
    counts = np.bincount(predictions.true)
    counts = counts[counts > 0]
    few = int((counts < _FEW).sum())
    if few and metric.averages_classes:
        candidate.add(CaveatKind.RARE_CLASSES, limit=_FEW, count=few, classes=len(counts), least=int(counts.min()))


def _grouped(candidates: list[Candidate], metric: Metric) -> list[Candidate]:
    """Merge runs with the same configuration but different seeds."""
    groups: dict[str, list[Candidate]] = {}
    for number, candidate in enumerate(candidates):
        groups.setdefault(_configuration(candidate.record) or f"foreign {number}", []).append(candidate)
    return [members[0] if len(members) == 1 else _merge(members, metric) for members in groups.values()]


def _configuration(record: RunRecord) -> str:
    """Return the settings that decide a result, without seed and paths; "" for records of other programs."""
    if not record.config:
        return ""
    config = {key: value for key, value in record.config.items() if key not in ("seed", "name", "track")}
    config["data"] = {key: value for key, value in config.get("data", {}).items() if key not in ("split", "root")}
    return json.dumps([config, record.split and record.split.fingerprint], sort_keys=True)


def _merge(members: list[Candidate], metric: Metric) -> Candidate:
    """Merge the members that were tested on the first one's images, each seed once."""
    first = next((member for member in members if member.evidence == 3), members[0])
    kept: dict[int | None, Candidate] = {}
    excluded = []
    for member in members:
        if member.evidence < 3:
            excluded.append(Caveat.of(CaveatKind.EXCLUDES_WITHOUT_PREDICTIONS, other=member.name))
            continue
        aligned, seed = align(first.predictions[0], member.predictions[0]), member.record.seed
        if isinstance(aligned, NotComparable):
            excluded.append(Caveat.of(CaveatKind.EXCLUDES_NOT_COMPARABLE, other=member.name, reason=aligned))
        elif seed in kept:
            same = kept[seed].name
            excluded.append(Caveat.of(CaveatKind.EXCLUDES_DUPLICATE_SEED, other=member.name, first=same))
        else:
            member.predictions = [aligned]
            kept[seed] = member
    runs = list(kept.values())
    if len(runs) < 2:
        alone = runs[0] if runs else first
        alone.caveats += excluded
        return alone
    predictions = [member.predictions[0] for member in runs]
    sample = Sample([contributions_of(metric, p) for p in predictions])
    mean = seed_variance_test([sample]).difference
    least, most = metric.bounds
    seeds = [member.record.seed for member in runs]
    return Candidate(
        name=f"{runs[0].name} ({len(runs)} seeds)",
        records=[member.record for member in runs],
        files=[member.files[0] for member in runs],
        predictions=predictions,
        score=MetricValue(value=mean.value, low=max(least, mean.low), high=min(most, mean.high), method=mean.method),
        num_test=len(predictions[0]),
        std=float(sample.values.std(ddof=1)),
        caveats=[Caveat.of(CaveatKind.MEAN_OF_SEEDS, count=len(runs), seeds=seeds), *excluded],
    )
