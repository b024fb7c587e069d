"""Which trial to take: the best, those that are not significantly different from it, and the cheapest of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import mean, median_low, stdev

from inat_ft.errors import InatFtError, RecordError
from inat_ft.evaluation.predictions import Predictions, read_predictions
from inat_ft.evaluation.significance import ALPHA, holm, unpaired_difference
from inat_ft.metrics import Contributions, get_metric
from inat_ft.records import RunRecord, read_record
from inat_ft.sweeps.study import Sweep, Trial
from inat_ft.sweeps.worker import Objective, TrialJob

_METRICS = {"val_accuracy": "accuracy", "val_loss": "log_loss"}
"""Metrics of a sweep that its predictions can test."""


class Standing(StrEnum):
    """How a trial compares with the best one on the validation images."""

    BEST = "best"
    TIED = "not significantly different"
    WORSE = "worse"
    UNKNOWN = "not tested"


@dataclass(frozen=True)
class Candidate:
    """A complete trial beside the best one."""

    trial: Trial
    cost: float | None
    """Seconds: its epochs at their median time, so that filling a cache does not count."""
    standing: Standing
    p: float | None = None
    """Of the paired test against the best, corrected for all pairs of trials (Holm): the same images also chose the best."""

    @property
    def not_significantly_worse(self) -> bool:
        """Whether it is the best, or not significantly different from it."""
        return self.standing in (Standing.BEST, Standing.TIED)


@dataclass(frozen=True)
class Selection:
    """What a sweep has found."""

    candidates: list[Candidate]
    """All complete trials, the best first."""
    method: str
    """How the trials were tested."""

    @property
    def is_tested(self) -> bool:
        """Whether the trials could be tested against the best."""
        return all(candidate.standing is not Standing.UNKNOWN for candidate in self.candidates)

    @property
    def bias(self) -> str:
        """A sentence on what the value of the best is worth; empty with a single trial."""
        if len(self.candidates) == 1:
            return ""
        return f"the validation result of the best of {len(self.candidates)} trials is optimistically biased"

    @property
    def not_significantly_worse(self) -> list[Candidate]:
        """The best and those that are not significantly different from it."""
        return [candidate for candidate in self.candidates if candidate.not_significantly_worse]

    def of(self, number: int) -> Candidate:
        """The trial of that number."""
        return next(candidate for candidate in self.candidates if candidate.trial.number == number)

    @property
    def cheapest(self) -> Candidate:
        """The one of these that trains fastest; the best where no times are known."""
        return min(self.not_significantly_worse, key=lambda candidate: (candidate.cost is None, candidate.cost or 0.0))


def read_run(sweep: Sweep, trial: Trial) -> RunRecord | None:
    """The record of a trial's run, where it is on this machine."""
    try:
        return read_record(sweep.runs / trial.run)[0]
    except InatFtError:
        return None


def choose(sweep: Sweep) -> Selection:
    """Weigh the complete trials. Raises RecordError when there is none."""
    trials = sweep.best()
    if not trials:
        raise RecordError(f"no trial of sweep {sweep.id} is complete yet", f"run it: inat-ft sweep run {sweep.id}")
    runs = [read_run(sweep, trial) for trial in trials]
    found = [_predictions(sweep.runs / trial.run) for trial in trials]
    costs = [_cost(run) for run in runs]
    metric = sweep.spec.metric.name
    if metric in _METRICS and (known := _aligned(found)):
        ps = holm_against_first([get_metric(_METRICS[metric]).contributions(p) for p in known])
        others: list[tuple[Standing, float | None]] = [(_standing(p >= ALPHA), p) for p in ps]
        test = "McNemar's exact test" if metric == "val_accuracy" else "paired test of the log loss"
        method = f"{test} on the same validation images, Holm-corrected for all pairs of trials"
    elif metric == "val_accuracy" and all(run and run.split for run in runs):
        others = [
            (_standing(not_significantly_worse), None)
            for not_significantly_worse in _unpaired([run for run in runs if run])
        ]
        method = (
            "unpaired intervals of the difference (Newcombe), Bonferroni-corrected for all pairs of trials, as not all "
            "predictions are on the same images"
        )
    else:
        others = [(Standing.UNKNOWN, None)] * (len(trials) - 1)
        method = "not tested: the runs' validation predictions are not here"
    rows = zip(trials[1:], costs[1:], others, strict=True)
    rest = [Candidate(trial, cost, standing, p) for trial, cost, (standing, p) in rows]
    return Selection([Candidate(trials[0], costs[0], Standing.BEST), *rest], method)


def _standing(not_significantly_worse: bool) -> Standing:
    return Standing.TIED if not_significantly_worse else Standing.WORSE


def _predictions(run: Path) -> Predictions | None:
    try:
        return read_predictions(run / "predictions-val.csv")
    except InatFtError:
        return None


def _aligned(found: Sequence[Predictions | None]) -> list[Predictions]:
    """The predictions of all trials, where there are any of each and all are of the same images; else none."""
    known = [p for p in found if p is not None]
    if len(known) < len(found):
        return []
    first = known[0]
    same = all(list(first.hashes) == list(p.hashes) and bool((first.true == p.true).all()) for p in known)
    return known if same else []


def holm_against_first(trials: Sequence[Contributions]) -> list[float]:
    """p of the first trial against each other one, Holm-corrected for all pairs of trials."""
    pairs = list(combinations(trials, 2))
    found = holm([(a - b).p if (a - b).varies else 1.0 for a, b in pairs])
    return found[: len(trials) - 1]


def _unpaired(runs: Sequence[RunRecord]) -> list[bool]:
    """Whether each run but the first, the best, is tied with it."""
    level = ALPHA / max(1, comb(len(runs), 2))
    shares = [(run.val_accuracy or 0.0, run.split.counts.get("val", 1)) for run in runs if run.split]
    found = [unpaired_difference(*shares[0], *other, alpha=level) for other in shares[1:]]
    return [difference.low <= 0 <= difference.high for difference in found]


def _cost(run: RunRecord | None) -> float | None:
    seconds = [epoch.seconds for epoch in run.history if epoch.seconds is not None] if run else []
    return median_low(seconds) * len(seconds) if seconds else None


@dataclass(frozen=True)
class Replication:
    """A trial trained again with other seeds."""

    trial: Trial
    values: Sequence[float]
    """The metric by seed: the trial's own first."""

    @property
    def mean(self) -> float:
        """Over the new seeds alone: the trial's own value is the one that was picked for being high."""
        return mean(self.values[1:])

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the new seeds."""
        return stdev(self.values[1:]) if len(self.values) > 2 else None


def replicate(sweep: Sweep, top: int, seeds: int, objective_for: Mapping[int, Objective]) -> list[Replication]:
    """Train the best trials again with other seeds; the one with the best mean comes first. The sweep remembers it.

    objective_for: the objective for each of `seeds` new seeds, by number from 1. Runs that are there already are kept.
    """
    found = {}
    for trial in sweep.best()[:top]:
        assert trial.value is not None
        values = [trial.value]
        for number in range(1, seeds + 1):
            job = TrialJob(
                f"{trial.run}-seed{number}", sweep.runs, sweep.settings(trial.point), lambda epoch, value: False
            )
            values.append(objective_for[number](job))
        found[str(trial.number)] = values
    sweep.study.set_user_attr("confirmed", found)
    return replication(sweep)


def replication(sweep: Sweep) -> list[Replication]:
    """What confirming has found, the best mean first; empty before that, and once a newer trial is the best one."""
    known: dict[str, list[float]] = sweep.study.user_attrs.get("confirmed", {})
    trials = sweep.best()
    if not trials or str(trials[0].number) not in known:
        return []
    found = [Replication(trial, known[str(trial.number)]) for trial in trials if str(trial.number) in known]
    sign = -1.0 if sweep.spec.metric.goal == "maximize" else 1.0
    return sorted(found, key=lambda replication: sign * replication.mean)
