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
from inat_ft.evaluation.metrics import Draws, one_metric, proportion
from inat_ft.evaluation.predictions import Predictions, align, read_predictions
from inat_ft.evaluation.significance import Sample, over_seeds
from inat_ft.records import Metric, RunRecord, read_record

_FEW = 5
"""Test images of a class below which macro metrics say little about it."""


class Caveat(StrEnum):
    """What a conclusion depends on besides the figures."""

    TRAINED_ON_TEST_IMAGES = "trained on test images"


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
    caveats: set[Caveat] = field(default_factory=set)

    @property
    def record(self) -> RunRecord:
        """The first member."""
        return self.records[0]

    @property
    def standing(self) -> int:
        """How well its score is borne out: 3 by predictions, 2 by a number of images, 1 by nothing, 0 there is none."""
        if self.score is None:
            return 0
        return 3 if self.predictions else 2 if self.num_test is not None else 1


def read_entries(paths: Sequence[Path], metric: str, group: bool) -> list[Entry]:
    """Entries of records, run directories, or directories of runs. Raises UsageError or RecordError."""
    entries = [_entry(record, file, metric) for record, file in _read(paths)]
    if group:
        entries = _grouped(entries, metric)
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            entry.name = f"{entry.name} ({entry.files[0].parent.name or entry.files[0].name})"
    return entries


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


def _entry(record: RunRecord, file: Path, metric: str) -> Entry:
    entry = Entry(record.name, [record], [file])
    name = record.predictions.get("test")
    if name is not None:
        try:
            entry.predictions = [read_predictions(file.parent / name)]
        except InatFtError as error:
            entry.remarks.append(f"has predictions that cannot be read: {error.message}")
    if entry.predictions:
        _score_predictions(entry, metric)
    elif record.test_accuracy is None:
        if name is None:
            next_step = f": inat-ft eval {file.parent}" if record.config else ""
            entry.remarks.append(f"has no test_accuracy: it has not been evaluated on a test set{next_step}")
    elif metric != "accuracy":
        entry.remarks.append(f"has no predictions, so its {metric} cannot be computed")
    else:
        _score_claim(entry, record.test_accuracy)
    return entry


def _score_claim(entry: Entry, claimed: float) -> None:
    entry.num_test = number = entry.record.num_test
    if number is None:
        entry.score = Metric(value=claimed)
        entry.remarks.append("does not say how many test images it was measured on: its accuracy cannot be checked")
        return
    entry.score = proportion(round(claimed * number), number).model_copy(update={"value": claimed})
    entry.remarks.append("has no predictions: only unpaired intervals are possible, and its accuracy is unverified")
    digits = len(repr(claimed).partition(".")[2])
    if abs(round(claimed * number) / number - claimed) > 0.51 * 10**-digits:
        entry.remarks.append(f"claims an accuracy of {claimed} on {number:,} images, which no number of them gives")


def _score_predictions(entry: Entry, metric: str) -> None:
    """Compute the score from the predictions, whatever the record claims."""
    predictions, record = entry.predictions[0], entry.record
    entry.num_test = len(predictions)
    counted, claims = float(predictions.correct.mean()), {record.test_accuracy}
    if record.test and "accuracy" in record.test.metrics:
        claims.add(record.test.metrics["accuracy"].value)
    for claimed in claims - {None}:
        if abs((claimed or 0.0) - counted) > 0.5 / len(predictions):
            entry.remarks.append(f"claims an accuracy of {claimed:.4f}, but its predictions come to {counted:.4f}")
    if predictions.probabilities is not None:
        odd = int((predictions.probabilities.argmax(1) != predictions.predicted).sum())
        if odd:
            entry.remarks.append(f"predicts another class than the one it finds most probable for {odd:,} images")
    elif metric in NEED_PROBABILITIES:
        entry.remarks.append(f"has predictions without probabilities, so its {metric} cannot be computed")
        return
    entry.score = one_metric(predictions, metric, Draws(predictions.true))
    if metric in MACRO and (few := _rare_classes(predictions)):
        entry.remarks.append(few)


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


def _grouped(entries: list[Entry], metric: str) -> list[Entry]:
    """Runs with one configuration but different seeds, as one entry with mean and standard deviation."""
    groups: dict[str, list[Entry]] = {}
    for number, entry in enumerate(entries):
        groups.setdefault(_configuration(entry.record) or f"foreign {number}", []).append(entry)
    return [members[0] if len(members) == 1 else _merge(members, metric) for members in groups.values()]


def _configuration(record: RunRecord) -> str:
    """All that decides a run but its seed and its place on the disk; empty for records of other code bases."""
    if not record.config:
        return ""
    config = {key: value for key, value in record.config.items() if key not in ("seed", "name", "track")}
    config["data"] = {key: value for key, value in config.get("data", {}).items() if key not in ("split", "root")}
    return json.dumps([config, record.split and record.split.fingerprint], sort_keys=True)


def _merge(members: list[Entry], metric: str) -> Entry:
    """Members on the first one's images with a seed of their own; what others there are is said."""
    first = next((member for member in members if member.standing == 3), members[0])
    taken: dict[int | None, Entry] = {}
    remarks = []
    for member in members:
        if member.standing < 3:
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
    found = over_seeds([sample]).difference
    low, high = max(0.0, found.low), found.high if metric in ("log_loss", "brier") else min(1.0, found.high)
    seeds = ", ".join(str(member.record.seed) for member in kept)
    return Entry(
        name=f"{kept[0].name} ({len(kept)} seeds)",
        records=[member.record for member in kept],
        files=[member.files[0] for member in kept],
        predictions=[member.predictions[0] for member in kept],
        score=Metric(value=found.value, low=low, high=high, method=found.method),
        num_test=len(kept[0].predictions[0]),
        deviation=float(sample.values.std(ddof=1)),
        remarks=[f"is the mean of {len(kept)} runs, with the seeds {seeds}", *remarks],
    )


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
