"""Two classifiers held against each other, as far as their records allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from inat_ft.evaluation.entries import Entry
from inat_ft.evaluation.metrics import METRICS, Draws, Floats, once
from inat_ft.evaluation.predictions import Predictions, align
from inat_ft.evaluation.significance import Difference, Finding, holm, mcnemar, over_seeds, paired, unpaired_difference

ALPHA = 0.05


@dataclass(frozen=True)
class Pair:
    """Two classifiers held against each other; differences are the first one's metric minus the second one's.

    p: of the exact McNemar test, or of the bootstrap for other metrics and groups; p_holm: corrected for all pairs that
    could have been looked at, since which is the best is itself read off the test set. only_first, only_second: images on
    which only that one is right. agreement: share of images of which both say the same. same: equivalent within the
    margin asked for.
    """

    first: str
    second: str
    difference: Difference | None
    p: float | None = None
    p_holm: float | None = None
    only_first: int | None = None
    only_second: int | None = None
    agreement: float | None = None
    same: bool | None = None
    obstacle: str = ""
    """Why the two cannot be compared, or only roughly; empty when they can."""
    different_images: bool = False
    """Whether they were tested on different images, labels or classes."""

    @property
    def is_real(self) -> bool:
        """Whether the difference stands after correction for several tests. Without predictions none does."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class _Judged:
    """An entry on the reference's images, in their order: the metric of each training, plainly and on the samples."""

    entry: Entry
    predictions: list[Predictions]
    values: Floats
    """`[S]`"""
    drawn: Floats
    """`[S, B]`"""


def pairs_of(entries: Sequence[Entry], metric: str, margin: float | None) -> list[Pair]:
    """The best-borne-out entry against each other one. entries: the best score first, two at least.

    The reference is the best of those with predictions; where there is none, of those that say on how many images they
    were measured; else the best.
    """
    reference = max(entries, key=lambda entry: entry.standing)  # of equals the first, which scored best
    others = [entry for entry in entries if entry is not reference]
    judged, obstacles = _judge(reference, others, metric)
    corrected = _corrected(list(judged.values()), metric, margin)
    pairs = []
    for other in others:
        if id(other) in judged:
            pair = _paired(judged[id(reference)], judged[id(other)], metric, margin)
            pairs.append(replace(pair, p_holm=corrected[id(other)]))
        else:
            pairs.append(_unpaired(reference, other, metric, obstacles.get(id(other), "")))
    return pairs


def _judge(reference: Entry, others: Sequence[Entry], metric: str) -> tuple[dict[int, _Judged], dict[int, str]]:
    """The entries that were tested on the reference's images, and why others with predictions were not, by id."""
    judged: dict[int, _Judged] = {}
    obstacles: dict[int, str] = {}
    if reference.standing < 3:
        return judged, obstacles
    base = reference.predictions[0]
    samples = Draws(base.true)
    for entry in (reference, *others):
        if entry.standing < 3:
            continue
        aligned = []
        for predictions in entry.predictions:
            found = align(base, predictions)
            if isinstance(found, str):
                obstacles[id(entry)] = found
                break
            aligned.append(found)
        else:
            values = np.array([METRICS[metric](p, once(p))[0] for p in aligned])
            drawn = np.stack([samples.of(METRICS[metric], p) for p in aligned])
            judged[id(entry)] = _Judged(entry, aligned, values, drawn)
    return judged, obstacles


def _find(first: _Judged, second: _Judged, metric: str, margin: float | None) -> Finding:
    drawn = first.drawn.mean(0) - second.drawn.mean(0)
    if len(first.values) > 1 or len(second.values) > 1:
        return over_seeds([first.values, second.values], drawn, margin)
    found = paired(float(first.values[0] - second.values[0]), drawn, margin)
    if metric != "accuracy":
        return found
    return replace(found, p=mcnemar(first.predictions[0].correct, second.predictions[0].correct)[2])


def _corrected(judged: list[_Judged], metric: str, margin: float | None) -> dict[int, float]:
    """p of each entry against the first, corrected over the pairs of all of them, by the entry's id."""
    pairs = list(combinations(range(len(judged)), 2))
    corrected = holm([_find(judged[a], judged[b], metric, margin).p for a, b in pairs])
    return {id(judged[b].entry): p for (a, b), p in zip(pairs, corrected, strict=True) if a == 0}


def _paired(first: _Judged, second: _Judged, metric: str, margin: float | None) -> Pair:
    found = _find(first, second, metric, margin)
    pair = Pair(first.entry.name, second.entry.name, found.difference, found.p, same=found.same)
    if len(first.values) > 1 or len(second.values) > 1:
        return pair
    a, b = first.predictions[0], second.predictions[0]
    only_first, only_second, _ = mcnemar(a.correct, b.correct)
    agreement = float((a.predicted == b.predicted).mean())
    return replace(pair, only_first=only_first, only_second=only_second, agreement=agreement)


def _unpaired(first: Entry, second: Entry, metric: str, obstacle: str) -> Pair:
    """obstacle: why their images cannot be matched, where both have predictions."""
    pair = Pair(first.name, second.name, None, different_images=bool(obstacle))
    if first.score is None or second.score is None:
        unknown = second if second.score is None else first
        return replace(pair, obstacle=f"the {metric.replace('_', ' ')} of {unknown.name} is not known")
    if not obstacle:
        obstacle = _unlike(first, second)
        pair = replace(pair, different_images=bool(obstacle))
        without = " and ".join(entry.name for entry in (first, second) if not entry.predictions)
        obstacle = obstacle or f"{without} came without predictions"
    unknown_n = [entry.name for entry in (first, second) if entry.num_test is None]
    if unknown_n:
        verb = (
            "does not say on how many images it was"
            if len(unknown_n) == 1
            else "do not say on how many images they were"
        )
        return replace(pair, obstacle=f"{' and '.join(unknown_n)} {verb} measured, so the difference cannot be checked")
    if metric != "accuracy" or first.num_test is None or second.num_test is None:
        return replace(pair, obstacle=obstacle)
    difference = unpaired_difference(first.score.value, first.num_test, second.score.value, second.num_test)
    return replace(pair, difference=difference, obstacle=obstacle)


def _unlike(first: Entry, second: Entry) -> str:
    """What the records alone say against the two having been tested on the same images; empty when nothing."""
    a, b = first.record, second.record
    if a.classes and b.classes and set(a.classes) != set(b.classes):
        unlike = sorted(set(a.classes) ^ set(b.classes))
        return f"they tell different classes apart ({', '.join(unlike[:3])})"
    prints = [record.test.fingerprint for record in (a, b) if record.test and record.test.fingerprint]
    if len(set(prints)) > 1:
        return "they were tested on different images (their fingerprints differ)"
    return ""
