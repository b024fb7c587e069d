"""Which trial to take: the best, those not significantly different from it, and the cheapest of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import comb
from statistics import mean, median_low, stdev

from inat_ft.errors import InatFtError, RecordError
from inat_ft.evaluation.predictions import Predictions, read_predictions
from inat_ft.evaluation.significance import ALPHA, holm, unpaired_difference
from inat_ft.metrics import Contributions, get_metric
from inat_ft.records import RunRecord, read_record
from inat_ft.sweeps.attempts import Trial
from inat_ft.sweeps.base import Objective, TrialJob
from inat_ft.sweeps.study import Sweep

_PAIRED = {"val_accuracy": "accuracy", "val_loss": "log_loss"}
"""Metrics of a sweep that a paired test of the predictions can compare."""


class Standing(StrEnum):
    """How a trial compares with the best one on the validation images."""

    BEST = "best"
    TIED = "not significantly different"
    WORSE = "worse"
    UNKNOWN = "not tested"

    @classmethod
    def of(cls, tied: bool) -> Standing:
        """Return TIED or WORSE."""
        return cls.TIED if tied else cls.WORSE


class SelectionTest(StrEnum):
    """The test that compares the trials with the best one."""

    MCNEMAR = "McNemar's exact test on the same validation images, Holm-corrected for all pairs of trials"
    LOG_LOSS = "paired test of the log loss on the same validation images, Holm-corrected for all pairs of trials"
    UNPAIRED = (
        "unpaired intervals of the difference (Newcombe), Bonferroni-corrected for all pairs of trials, as not all "
        "predictions are on the same images"
    )
    NONE = "not tested: the validation predictions of the runs are not on this machine"


@dataclass(frozen=True)
class Candidate:
    """A complete trial, compared with the best one."""

    trial: Trial
    cost: float | None
    """Seconds: its epochs at their median time, so that filling a cache does not count."""
    standing: Standing
    p: float | None = None
    """p-value of the paired test, Holm-corrected for all pairs of trials, since the same images chose the best."""

    @property
    def not_significantly_worse(self) -> bool:
        """Whether it is the best, or not significantly different from it."""
        return self.standing in (Standing.BEST, Standing.TIED)


@dataclass(frozen=True)
class Selection:
    """The complete trials of a sweep, compared with the best one."""

    candidates: list[Candidate]
    """The best first."""
    test: SelectionTest

    @property
    def is_tested(self) -> bool:
        """Whether the trials could be tested against the best."""
        return all(candidate.standing is not Standing.UNKNOWN for candidate in self.candidates)

    @property
    def bias(self) -> str:
        """A warning about the value of the best; empty for a single trial."""
        if len(self.candidates) == 1:
            return ""
        return f"the validation result of the best of {len(self.candidates)} trials is optimistically biased"

    @property
    def not_significantly_worse(self) -> list[Candidate]:
        """The best and those that are not significantly different from it."""
        return [candidate for candidate in self.candidates if candidate.not_significantly_worse]

    def of(self, number: int) -> Candidate:
        """Return the trial of that number."""
        return next(candidate for candidate in self.candidates if candidate.trial.number == number)

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
    costs = [_cost(run) for run in runs]
    test, others = _compare(sweep, trials, runs)
    rest = [
        Candidate(trial, cost, standing, p)
        for trial, cost, (standing, p) in zip(trials[1:], costs[1:], others, strict=True)
    ]
    return Selection([Candidate(trials[0], costs[0], Standing.BEST), *rest], test)


def _compare(
    sweep: Sweep, trials: Sequence[Trial], runs: Sequence[RunRecord | None]
) -> tuple[SelectionTest, list[tuple[Standing, float | None]]]:
    """Return the test, and the standing and p-value of each trial after the first."""
    metric = sweep.spec.metric.name
    if metric in _PAIRED and (aligned := _aligned_predictions(sweep, trials)):
        ps = holm_against_first([get_metric(_PAIRED[metric]).contributions(predictions) for predictions in aligned])
        test = SelectionTest.MCNEMAR if metric == "val_accuracy" else SelectionTest.LOG_LOSS
        return test, [(Standing.of(p >= ALPHA), p) for p in ps]
    known = [run for run in runs if run and run.split]
    if metric == "val_accuracy" and len(known) == len(runs):
        return SelectionTest.UNPAIRED, [(Standing.of(tied), None) for tied in _unpaired(known)]
    return SelectionTest.NONE, [(Standing.UNKNOWN, None)] * (len(trials) - 1)


def _aligned_predictions(sweep: Sweep, trials: Sequence[Trial]) -> list[Predictions]:
    """Return the validation predictions of all trials; an empty list unless all are on the same images."""
    try:
        found = [read_predictions(sweep.runs / trial.run / "predictions-val.csv") for trial in trials]
    except InatFtError:
        return []
    first = found[0]
    same = all(list(first.hashes) == list(p.hashes) and bool((first.true == p.true).all()) for p in found)
    return found if same else []


def holm_against_first(trials: Sequence[Contributions]) -> list[float]:
    """Return the p-values of the first trial against each other, Holm-corrected for all pairs of trials."""
    pairs = list(combinations(trials, 2))
    found = holm([(a - b).p if (a - b).varies else 1.0 for a, b in pairs])
    return found[: len(trials) - 1]


def _unpaired(runs: Sequence[RunRecord]) -> list[bool]:
    """Return whether each run but the first, the best, is not significantly different from it."""
    level = ALPHA / max(1, comb(len(runs), 2))
    results = [(run.val_accuracy or 0.0, run.split.counts.get("val", 1)) for run in runs if run.split]
    found = [unpaired_difference(*results[0], *other, alpha=level) for other in results[1:]]
    return [difference.low <= 0 <= difference.high for difference in found]


def _cost(run: RunRecord | None) -> float | None:
    seconds = [epoch.seconds for epoch in run.history if epoch.seconds is not None] if run else []
    return median_low(seconds) * len(seconds) if seconds else None


@dataclass(frozen=True)
class Replication:
    """A trial trained again with other seeds."""

    trial: Trial
    values: Sequence[float]
    """The metric by seed, the trial's own first."""

    @property
    def mean(self) -> float:
        """Mean over the new seeds; the trial's own value is biased, since it was chosen for being high."""
        return mean(self.values[1:])

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the new seeds; None for a single one."""
        return stdev(self.values[1:]) if len(self.values) > 2 else None


def replicate(sweep: Sweep, top: int, seeds: int, objectives: Mapping[int, Objective]) -> list[Replication]:
    """Train the best trials again with other seeds; return them by mean, the best first. The sweep stores the result.

    objectives: the objective for each of the new seeds, by number from 1. Finished runs are not repeated.
    """
    found = {}
    for trial in sweep.best()[:top]:
        assert trial.value is not None
        jobs = [
            TrialJob(f"{trial.run}-seed{number}", sweep.runs, sweep.settings(trial.params))
            for number in range(1, seeds + 1)
        ]
        values = [objectives[number](job) for number, job in enumerate(jobs, 1)]
        found[str(trial.number)] = [trial.value, *values]
    sweep.note("confirmed", found)
    return replication(sweep)


def replication(sweep: Sweep) -> list[Replication]:
    """Return the stored replications, the best mean first; an empty list if a newer trial is the best."""
    known: dict[str, list[float]] = sweep.attr("confirmed", {})
    trials = sweep.best()
    if not trials or str(trials[0].number) not in known:
        return []
    found = [Replication(trial, known[str(trial.number)]) for trial in trials if str(trial.number) in known]
    return sorted(found, key=lambda each: each.mean, reverse=sweep.spec.metric.goal == "maximize")
