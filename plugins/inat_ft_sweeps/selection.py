"""Which trial to take: the best, those not significantly different from it, and the cheapest of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import comb
from statistics import median_low

from inat_ft.errors import InatFtError, RecordError
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.metrics import Contributions, Predictions, get_metric
from inat_ft.metrics.bounds import ALPHA, holm, unpaired_difference
from inat_ft.records import RunRecord, read_record
from inat_ft_sweeps.attempts import Trial
from inat_ft_sweeps.study import Sweep


class Standing(StrEnum):
    """How a trial compares with the best one on the validation images."""

    BEST = "best"
    TIED = "not significantly different"
    WORSE = "worse"
    UNKNOWN = "not tested"


class SelectionTest(StrEnum):
    """The test that compares the trials with the best one."""

    MCNEMAR = "McNemar's exact test on the same validation images, Holm-corrected for all pairs of trials"
    LOG_LOSS = "paired test of the log loss on the same validation images, Holm-corrected for all pairs of trials"
    UNPAIRED = (
        "unpaired intervals of the difference (Newcombe), Bonferroni-corrected for all pairs of trials, as not all "
        "predictions are on the same images"
    )
    NONE = "not tested: the validation predictions of the runs are not on this machine"


_PAIRED = {"val_accuracy": ("accuracy", SelectionTest.MCNEMAR), "val_loss": ("log_loss", SelectionTest.LOG_LOSS)}
"""Metrics of a sweep that a paired test of the predictions can compare: name of the metric, and the test."""


@dataclass(frozen=True)
class Candidate:
    """A complete trial, compared with the best one."""

    trial: Trial
    cost: float | None  # seconds: its epochs at their median time, so that filling a cache does not count
    standing: Standing
    p: float | None = None
    """p-value of the paired test, Holm-corrected for all pairs of trials, since the same images chose the best."""

    @property
    def not_significantly_worse(self) -> bool:
        return self.standing in (Standing.BEST, Standing.TIED)


@dataclass(frozen=True)
class Selection:
    """The complete trials of a sweep, compared with the best one."""

    candidates: list[Candidate]  # the best first
    test: SelectionTest

    @property
    def is_tested(self) -> bool:
        return all(candidate.standing is not Standing.UNKNOWN for candidate in self.candidates)

    @property
    def bias(self) -> str:
        """A warning about the value of the best; empty for a single trial."""
        if len(self.candidates) == 1:
            return ""
        return f"the validation result of the best of {len(self.candidates)} trials is optimistically biased"

    @property
    def not_significantly_worse(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.not_significantly_worse]

    @property
    def cheapest(self) -> Candidate:
        """The fastest of those that are not significantly worse; the best if no times are known."""
        return min(self.not_significantly_worse, key=lambda candidate: (candidate.cost is None, candidate.cost or 0.0))


def read_run(sweep: Sweep, trial: Trial) -> RunRecord | None:
    """Return the record of a trial's run, or None if it is not on this machine."""
    try:
        return read_record(sweep.runs / trial.run)[0]
    except InatFtError:
        return None


def choose(sweep: Sweep) -> Selection:
    """Compare the complete trials with the best. Raises RecordError if there is none."""
    trials = sweep.best()
    if not trials:
        raise RecordError(f"no trial of sweep {sweep.id} is complete", f"run it: {sweep.next_command('run')}")
    runs = [read_run(sweep, trial) for trial in trials]
    test, others = _compare(sweep, trials, runs)
    outcomes = zip(trials, runs, [(Standing.BEST, None), *others], strict=True)
    return Selection([Candidate(trial, _cost(run), standing, p) for trial, run, (standing, p) in outcomes], test)


def _cost(run: RunRecord | None) -> float | None:
    seconds = [epoch.seconds for epoch in run.history if epoch.seconds is not None] if run else []
    return median_low(seconds) * len(seconds) if seconds else None


def _compare(
    sweep: Sweep, trials: Sequence[Trial], runs: Sequence[RunRecord | None]
) -> tuple[SelectionTest, list[tuple[Standing, float | None]]]:
    """Return the test, and the standing and p-value of each trial after the first."""
    metric = sweep.spec.metric.name
    if metric in _PAIRED and (aligned := _aligned_predictions(sweep, trials)):
        name, test = _PAIRED[metric]
        ps = holm_against_first([get_metric(name).contributions(predictions) for predictions in aligned])
        return test, [(Standing.TIED if p >= ALPHA else Standing.WORSE, p) for p in ps]
    known = [(run.val_accuracy or 0.0, run.split.counts.get("val", 1)) for run in runs if run and run.split]
    if metric == "val_accuracy" and len(known) == len(runs):
        level = ALPHA / max(1, comb(len(known), 2))
        found = [unpaired_difference(*known[0], *other, alpha=level) for other in known[1:]]
        tied = [difference.low <= 0 <= difference.high for difference in found]
        return SelectionTest.UNPAIRED, [(Standing.TIED if each else Standing.WORSE, None) for each in tied]
    return SelectionTest.NONE, [(Standing.UNKNOWN, None)] * (len(trials) - 1)


def _aligned_predictions(sweep: Sweep, trials: Sequence[Trial]) -> list[Predictions]:
    """Return the validation predictions of all trials; an empty list unless all are on the same images."""
    try:
        found = [read_predictions(sweep.runs / trial.run / "predictions-val.csv") for trial in trials]
    except InatFtError:
        return []
    same = all(list(found[0].hashes) == list(p.hashes) and bool((found[0].true == p.true).all()) for p in found)
    return found if same else []


def holm_against_first(trials: Sequence[Contributions]) -> list[float]:
    """Return the p-values of the first trial against each other, Holm-corrected for all pairs of trials."""
    corrected, _ = holm([(a - b).p if (a - b).varies else 1.0 for a, b in combinations(trials, 2)])
    return corrected[: len(trials) - 1]
