"""What is compared: records with their predictions, alone or as several seeds of one configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.errors import InatFtError, RecordError, UsageError
from inat_ft.evaluation.contributions import MACRO, METRICS, NEED_PROBABILITIES
from inat_ft.evaluation.metrics import BootstrapWeights, compute_metric, proportion
from inat_ft.evaluation.predictions import Predictions, align, read_predictions
from inat_ft.evaluation.significance import Sample, seed_variance_test
from inat_ft.records import Metric, RunRecord, read_record

_FEW = 5
"""Test images of a class below which macro metrics say little about it."""


class Caveat(StrEnum):
    """What a conclusion depends on besides the figures."""

    TRAINED_ON_TEST_IMAGES = "trained on test images"


@dataclass
class Candidate:
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
    std: float | None = None
    """Standard deviation over the seeds."""
    remarks: list[str] = field(default_factory=list)
    caveats: set[Caveat] = field(default_factory=set)

    @property
    def record(self) -> RunRecord:
        """The first member."""
        return self.records[0]

    @property
    def evidence(self) -> int:
        """How well its score is borne out: 3 by predictions, 2 by a number of images, 1 by nothing, 0 there is none."""
        if self.score is None:
            return 0
        return 3 if self.predictions else 2 if self.num_test is not None else 1


def read_candidates(paths: Sequence[Path], metric: str, group: bool) -> list[Candidate]:
    """Entries of records, run directories, or directories of runs. Raises UsageError or RecordError."""
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
        holds_run = any((path / name).exists() for name in ("record.json", "config.yaml"))
        if path.is_dir() and not holds_run:
            inside = sorted(file.parent for file in path.glob("*/record.json"))
            if not inside:
                raise RecordError(f"{path} holds no run: there is no record.json in it or in its folders")
            found += inside
        else:
            found.append(path)
    if len({path.resolve() for path in found}) < len(found):
        raise UsageError("the same record is named twice")
    return [read_record(path) for path in found]


def _candidate(record: RunRecord, file: Path, metric: str) -> Candidate:
    candidate = Candidate(record.name, [record], [file])
    name = record.predictions.get("test")
    if name is not None:
        try:
            candidate.predictions = [read_predictions(file.parent / name)]
        except InatFtError as error:
            candidate.remarks.append(f"has predictions that cannot be read: {error.message}")
    if candidate.predictions:
        _score_predictions(candidate, metric)
    elif record.test_accuracy is None:
        if name is None:
            next_step = f": inat-ft eval {file.parent}" if record.config else ""
            candidate.remarks.append(f"has no test_accuracy: it has not been evaluated on a test set{next_step}")
    elif metric != "accuracy":
        candidate.remarks.append(f"has no predictions, so its {metric} cannot be computed")
    else:
        _score_claim(candidate, record.test_accuracy)
    return candidate


def _score_claim(candidate: Candidate, claimed: float) -> None:
    candidate.num_test = number = candidate.record.num_test
    if number is None:
        candidate.score = Metric(value=claimed)
        candidate.remarks.append("does not say how many test images it was measured on: its accuracy cannot be checked")
        return
    candidate.score = proportion(round(claimed * number), number).model_copy(update={"value": claimed})
    candidate.remarks.append("has no predictions: only unpaired intervals are possible, and its accuracy is unverified")
    digits = len(repr(claimed).partition(".")[2])
    if abs(round(claimed * number) / number - claimed) > 0.51 * 10**-digits:
        candidate.remarks.append(f"claims an accuracy of {claimed} on {number:,} images, which no number of them gives")


def _score_predictions(candidate: Candidate, metric: str) -> None:
    """Compute the score from the predictions, whatever the record claims."""
    predictions, record = candidate.predictions[0], candidate.record
    candidate.num_test = len(predictions)
    pluralize, claims = float(predictions.correct.mean()), {record.test_accuracy}
    if record.test and "accuracy" in record.test.metrics:
        claims.add(record.test.metrics["accuracy"].value)
    for claimed in claims - {None}:
        if abs((claimed or 0.0) - pluralize) > 0.5 / len(predictions):
            candidate.remarks.append(
                f"claims an accuracy of {claimed:.4f}, but its predictions come to {pluralize:.4f}"
            )
    if predictions.probabilities is not None:
        odd = int((predictions.probabilities.argmax(1) != predictions.predicted).sum())
        if odd:
            candidate.remarks.append(f"predicts another class than the one it finds most probable for {odd:,} images")
    elif metric in NEED_PROBABILITIES:
        candidate.remarks.append(f"has predictions without probabilities, so its {metric} cannot be computed")
        return
    candidate.score = compute_metric(predictions, metric, BootstrapWeights(predictions.true))
    if metric in MACRO and (few := _rare_classes(predictions)):
        candidate.remarks.append(few)


def _rare_classes(predictions: Predictions) -> str:
    """How many classes have too few images for a macro metric to say much about them; empty when none has."""
    counts = np.bincount(predictions.true)
    counts = counts[counts > 0]
    few = int((counts < _FEW).sum())
    if not few:
        return ""
    return (
        f"has fewer than {_FEW} test images in {few:,} of {len(counts):,} classes, {counts.min()} in the rarest: "
        "its macro metrics have wide intervals"
    )


def _grouped(candidates: list[Candidate], metric: str) -> list[Candidate]:
    """Runs with one configuration but different seeds, as one entry with mean and standard deviation."""
    groups: dict[str, list[Candidate]] = {}
    for number, candidate in enumerate(candidates):
        groups.setdefault(_configuration(candidate.record) or f"foreign {number}", []).append(candidate)
    return [members[0] if len(members) == 1 else _merge(members, metric) for members in groups.values()]


def _configuration(record: RunRecord) -> str:
    """All that decides a run but its seed and its place on the disk; empty for records of other code bases."""
    if not record.config:
        return ""
    config = {key: value for key, value in record.config.items() if key not in ("seed", "name", "track")}
    config["data"] = {key: value for key, value in config.get("data", {}).items() if key not in ("split", "root")}
    return json.dumps([config, record.split and record.split.fingerprint], sort_keys=True)


def _merge(members: list[Candidate], metric: str) -> Candidate:
    """Members on the first one's images with a seed of their own; what others there are is said."""
    first = next((member for member in members if member.evidence == 3), members[0])
    taken: dict[int | None, Candidate] = {}
    remarks = []
    for member in members:
        if member.evidence < 3:
            remarks.append(f"leaves {member.name} out, which has no predictions on the test set")
            continue
        aligned = align(first.predictions[0], member.predictions[0])
        if isinstance(aligned, str):
            remarks.append(f"leaves {member.name} out: {aligned}")
        elif member.record.seed in taken:
            remarks.append(f"leaves {member.name} out: {taken[member.record.seed].name} has its seed already")
        else:
            member.predictions = [aligned]
            taken[member.record.seed] = member
    kept = list(taken.values())
    if len(kept) < 2:
        alone = kept[0] if kept else first
        alone.remarks += remarks
        return alone
    sample = Sample([METRICS[metric](member.predictions[0]) for member in kept])
    found = seed_variance_test([sample]).difference
    low, high = max(0.0, found.low), found.high if metric in ("log_loss", "brier") else min(1.0, found.high)
    seeds = ", ".join(str(member.record.seed) for member in kept)
    return Candidate(
        name=f"{kept[0].name} ({len(kept)} seeds)",
        records=[member.record for member in kept],
        files=[member.files[0] for member in kept],
        predictions=[member.predictions[0] for member in kept],
        score=Metric(value=found.value, low=low, high=high, method=found.method),
        num_test=len(kept[0].predictions[0]),
        std=float(sample.values.std(ddof=1)),
        remarks=[f"is the mean of {len(kept)} runs, with the seeds {seeds}", *remarks],
    )


def manifest_of_candidate(candidate: Candidate) -> Manifest | None:
    """The manifest that an entry was trained with, if it is still there unchanged."""
    split = candidate.record.split
    if split is None:
        return None
    try:
        manifest = read_manifest((candidate.files[0].parent / split.manifest).resolve())
    except InatFtError:
        return None
    return manifest if manifest.fingerprint == split.fingerprint else None
