"""The conclusion of `inat-ft tune`, in one sentence that states only what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import mean

import numpy as np
from inat_ft_groups.groups import clustered, members
from numpy.typing import NDArray

from inat_ft.data.manifest import read_manifest
from inat_ft.errors import InatFtError
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.metrics import Predictions, get_metric
from inat_ft.metrics.bounds import ALPHA, Contributions, holm, paired, seed_variance_test
from inat_ft.metrics.builtin import proportion
from inat_ft.records import MetricValue
from inat_ft.text import pluralize
from inat_ft_tune.planner import format_seconds
from inat_ft_tune.state import State, Trial

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Standing:
    """A leader with its results with new seeds, compared with the chosen one. p: Holm-corrected; None if not tested."""

    trial: Trial
    values: Sequence[float]
    p: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the new seeds."""
        return mean(self.values)


def standings(state: State) -> list[Standing]:
    """Return the leaders by their means over the new seeds, each with the test against the chosen one.

    With one seed it is McNemar's exact test; with more, the test of `inat-ft compare --group`. Both use the same validation
    images, with the groups of `--group-by`, and p-values are Holm-corrected for all pairs of leaders.
    """
    member = _members(state)
    names = [name for name in state.leaders if state.confirmed(name)]
    names.sort(key=lambda name: (name != state.chosen, -mean(state.confirmed(name))))
    try:
        runs = {name: [_contributions(trial, member) for trial in state.repetitions(name)] for name in names}
    except InatFtError:  # a file is missing
        runs = {}
    ps: dict[str, float] = {}
    if runs:
        pairs = list(combinations(names, 2))
        corrected, _ = holm([_p(runs[a], runs[b]) for a, b in pairs])
        ps = {b: p for (a, b), p in zip(pairs, corrected, strict=True) if a == state.chosen}
    return [Standing(state.trial(name), state.confirmed(name), ps.get(name)) for name in names]


def _members(state: State) -> Ints | None:
    """Return the number of the group of each validation image; None for a split without `--group-by`."""
    try:
        manifest = read_manifest(Path(state.split))
    except InatFtError:  # it was moved
        return None
    return members(manifest, "val") if manifest.made.get("group_by") else None


def _predictions(trial: Trial) -> Predictions:
    return read_predictions(Path(trial.directory) / "predictions-val.csv")


def _contributions(trial: Trial, member: Ints | None) -> Contributions:
    return replace(get_metric("accuracy").contributions(_predictions(trial)), member=member)


def _p(a: Sequence[Contributions], b: Sequence[Contributions]) -> float:
    number = min(len(a), len(b))
    found = seed_variance_test([a[:number], b[:number]]) if number > 1 else paired(a[0] - b[0])
    return 1.0 if found.p is None else found.p


def interval(state: State, trial: Trial) -> MetricValue:
    """Return the validation accuracy of a run with its 95% interval, which ignores that the images chose the run."""
    number, member = state.images["val"], _members(state)
    found = proportion(round((trial.value or 0.0) * number), number)
    if member is None:
        return found
    try:
        return clustered(_predictions(trial), {"accuracy": found}, member)["accuracy"]
    except InatFtError:  # a file is missing
        return found


def delivered(state: State) -> Trial:
    """Return the trial whose run was chosen."""
    return next(trial for trial in state.trials if trial.directory == state.run)


def num_tried(state: State) -> int:
    """Return the number of settings with a result."""
    return sum(trial.value is not None for trial in state.of_stage("heads", "halving"))


def summarize(state: State, found: Sequence[Standing]) -> str:
    """Return the conclusion as one sentence."""
    run, choice, value = delivered(state), state.trial(state.chosen), interval(state, delivered(state))
    images = pluralize(state.images["val"], "validation image")
    parts = [
        f"The choice is {choice.settings}: validation accuracy {value.value:.4f} (95% interval {value.low:.4f} to "
        f"{value.high:.4f}, {images}), which is optimistically biased, because the same images were used to choose among "
        f"{pluralize(num_tried(state), 'setting')}"
    ]
    if run.strategy != choice.strategy or run.params != choice.params:
        parts[0] = parts[0].replace(f"The choice is {choice.settings}", f"The run is {run.settings}", 1)
        parts.append(f"there was no time for a complete run of {choice.settings}, which was ahead")
    elif len(found) > 1 and found[0].trial.name == state.chosen:
        epochs = max(each.epochs for each in state.repetitions(choice.name))  # the choice may have been trained longer
        seeds = f"{pluralize(len(found[0].values), 'new seed')} after {pluralize(epochs, 'epoch')}"
        parts.append(f"its mean with {seeds} is {found[0].mean:.4f}, {_others(found)}")
    elif num_tried(state) > 1 and choice.strategy != "head":
        parts.append("there was no time to repeat the leaders with new seeds")
    if rival := _rival(state, run):
        parts.append(rival)
    return "; ".join(parts) + "."


def _rival(state: State, run: Trial) -> str:
    """Return how the run compares with the best head, or a head with the final run of another strategy."""
    others = state.of_stage("final") if run.strategy == "head" else state.of_stage("heads")
    others = [trial for trial in others if trial.value is not None and trial.status == "done" and trial.of != run.name]
    if not others:
        return ""
    other = max(others, key=lambda trial: trial.value or 0.0)
    try:
        member = _members(state)
        p = _p([_contributions(run, member)], [_contributions(other, member)])
    except InatFtError:  # a file is missing
        return ""
    standing = "better than" if p < ALPHA else "not significantly different from"
    result = f"{other.value or 0.0:.4f}, p = {p:.2g}"
    if run.strategy == "head":
        return f"this run is {standing} the longest run of {other.settings} ({result})"
    return f"this run is {standing} the best head ({other.settings.removeprefix('head, ')}: {result})"


def _others(found: Sequence[Standing]) -> str:
    level = [each for each in found[1:] if each.p is None or each.p >= ALPHA]
    beaten = [each for each in found[1:] if each not in level]
    texts = []
    if level:
        texts.append(f"not significantly different from {_listed(level)}")
    if beaten:
        texts.append(f"better than {_listed(beaten)}")
    return " and ".join(texts)


def _listed(found: Sequence[Standing]) -> str:
    names = [
        f"{each.trial.settings} ({each.mean:.4f}{'' if each.p is None else f', p = {each.p:.2g}'})" for each in found
    ]
    return " and ".join(names)


def time_text(state: State) -> str:
    """Return the time used and the budget."""
    return f"{format_seconds(state.spent_s)} of {format_seconds(state.budget_s)}"
