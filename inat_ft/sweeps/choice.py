"""Which trial to take: the best, those that cannot be told from it, and the cheapest of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median_low, stdev

from inat_ft.errors import InatFtError, RecordError
from inat_ft.evaluation.predictions import Predictions, read_predictions
from inat_ft.evaluation.significance import holm, mcnemar, paired_difference, unpaired_difference
from inat_ft.records import RunRecord, read_record
from inat_ft.sweeps.local import Sweep, Trial
from inat_ft.sweeps.worker import Job, Objective

ALPHA = 0.05


@dataclass(frozen=True)
class Candidate:
    """A complete trial beside the best one."""

    trial: Trial
    cost: float | None
    """Seconds: its epochs at their median time, so that filling a cache counts for nobody."""
    tied: bool
    """Whether it cannot be told from the best: the best itself is tied with itself."""
    p: float | None = None
    """Of the paired test against the best, corrected for the number of trials (Holm)."""


@dataclass(frozen=True)
class Choice:
    """What a sweep has found."""

    candidates: list[Candidate]
    """All complete trials, the best first."""
    method: str
    """How the trials were told apart."""

    @property
    def tied(self) -> list[Candidate]:
        """The best and those that cannot be told from it."""
        return [candidate for candidate in self.candidates if candidate.tied]

    def of(self, number: int) -> Candidate:
        """The trial of that number."""
        return next(candidate for candidate in self.candidates if candidate.trial.number == number)

    @property
    def cheapest(self) -> Candidate:
        """The one of these that trains fastest; the best where no times are known."""
        return min(self.tied, key=lambda candidate: (candidate.cost is None, candidate.cost or 0.0))


def read_run(sweep: Sweep, trial: Trial) -> RunRecord | None:
    """The record of a trial's run, where it is on this machine."""
    try:
        return read_record(sweep.runs / trial.run)[0]
    except InatFtError:
        return None


def choose(sweep: Sweep) -> Choice:
    """Weigh the complete trials. Raises RecordError when there is none."""
    trials = sweep.best()
    if not trials:
        raise RecordError(f"no trial of sweep {sweep.id} is complete yet", f"run it: inat-ft sweep run {sweep.id}")
    runs = [read_run(sweep, trial) for trial in trials]
    found = [_predictions(sweep.runs / trial.run) for trial in trials]
    costs = [_cost(run) for run in runs]
    first = found[0]
    paired = first is not None and all(p is not None and _same_images(first, p) for p in found)
    metric = sweep.spec.metric.name
    if paired and metric == "val_accuracy":
        ps = [mcnemar(first.correct, p.correct)[2] for p in found[1:] if first and p]
        others: list[tuple[bool, float | None]] = [(p > ALPHA, p) for p in holm(ps)]
        method = "McNemar's test on the same validation images, Holm-corrected"
    elif paired and metric == "val_loss":
        others = [(_spans_zero(p, first), None) for p in found[1:]]
        method = "paired bootstrap of the log loss on the same validation images"
    elif metric == "val_accuracy" and all(run and run.split for run in runs):
        others = [(_overlap(runs[0], run), None) for run in runs[1:]]
        method = "unpaired intervals of the difference (Newcombe), as not all predictions are on the same images"
    else:
        others, method = [(False, None)] * (len(trials) - 1), "not at all: the runs' predictions are not here"
    rows = zip(trials, costs, [(True, None), *others], strict=True)
    return Choice([Candidate(trial, cost, tied, p) for trial, cost, (tied, p) in rows], method)


def _predictions(run: Path) -> Predictions | None:
    try:
        return read_predictions(run / "predictions-val.csv")
    except InatFtError:
        return None


def _same_images(first: Predictions, second: Predictions) -> bool:
    return list(first.hashes) == list(second.hashes) and bool((first.true == second.true).all())


def _spans_zero(predictions: Predictions | None, first: Predictions | None) -> bool:
    assert predictions is not None and first is not None
    difference = paired_difference(first, predictions, "log_loss").difference
    return difference.low <= 0 <= difference.high


def _overlap(first: RunRecord | None, second: RunRecord | None) -> bool:
    assert first and second and first.split and second.split
    a, b = ((run.val_accuracy or 0.0, run.split.counts.get("val", 1)) for run in (first, second) if run.split)
    difference = unpaired_difference(*a, *b)
    return difference.low <= 0 <= difference.high


def _cost(run: RunRecord | None) -> float | None:
    seconds = [epoch.seconds for epoch in run.history if epoch.seconds is not None] if run else []
    return median_low(seconds) * len(seconds) if seconds else None


@dataclass(frozen=True)
class Confirmed:
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


def confirm(sweep: Sweep, top: int, seeds: int, objective_for: Mapping[int, Objective]) -> list[Confirmed]:
    """Train the best trials again with other seeds; the one with the best mean comes first. The sweep remembers it.

    objective_for: the objective for each of `seeds` new seeds, by number from 1. Runs that are there already are kept.
    """
    found = {}
    for trial in sweep.best()[:top]:
        assert trial.value is not None
        values = [trial.value]
        for number in range(1, seeds + 1):
            job = Job(f"{trial.run}-seed{number}", sweep.runs, sweep.settings(trial.point), lambda epoch, value: False)
            values.append(objective_for[number](job))
        found[str(trial.number)] = values
    sweep.study.set_user_attr("confirmed", found)
    return confirmed(sweep)


def confirmed(sweep: Sweep) -> list[Confirmed]:
    """What confirming has found, the best mean first; empty before that, and once a newer trial is the best one."""
    known: dict[str, list[float]] = sweep.study.user_attrs.get("confirmed", {})
    trials = sweep.best()
    if not trials or str(trials[0].number) not in known:
        return []
    found = [Confirmed(trial, known[str(trial.number)]) for trial in trials if str(trial.number) in known]
    sign = -1.0 if sweep.spec.metric.goal == "maximize" else 1.0
    return sorted(found, key=lambda confirmed: sign * confirmed.mean)
