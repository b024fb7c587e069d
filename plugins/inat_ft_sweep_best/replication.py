"""The best trials of a sweep, trained again with other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from inat_ft_sweeps.attempts import Trial
from inat_ft_sweeps.base import Objective, TrialJob
from inat_ft_sweeps.study import Sweep


@dataclass(frozen=True)
class Replication:
    """A trial trained again with other seeds."""

    trial: Trial
    values: Sequence[float]  # the metric by seed, the trial's own first

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
        values = [trial.value]
        for number in range(1, seeds + 1):
            job = TrialJob(f"{trial.run}-seed{number}", sweep.runs, sweep.settings(trial.params))
            values.append(objectives[number](job))
        found[str(trial.number)] = values
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
