"""Predictions pooled by group, and intervals for metrics of images that are not independent.

Images of a sequence or of a site resemble each other, so a test set of 1,000 images in 50 sequences tells little more than 50
images. The intervals are those of a Bayesian bootstrap of groups (Rubin 1981): each group gets a random weight of a flat
Dirichlet distribution, with all its images. As in `inat_ft.metrics.bounds`, one more group of mean size is added at the least
favorable end of the range, so that an interval never has zero width. For groups of one image it is Gaffke's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from inat_ft.data.manifest import Manifest
from inat_ft.errors import PluginError
from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.predictions import align, from_probabilities, write_predictions
from inat_ft.metrics.base import MeanMetric, Metric, Predictions, contributions_of, get_metric
from inat_ft.metrics.bounds import Contributions, Floats
from inat_ft.metrics.builtin import proportion
from inat_ft.records import MetricValue

_DRAWS = 10_000
_BLOCK_BYTES = 64 * 2**20
_LEVELS = (0.025, 0.975)


class GroupEvaluation(BaseModel):
    """The results by group, as records hold them.

    num_groups: groups of images, such as sequences or sites; an image without a group counts as one. num_seen: those that
    also have training images; 0 if all are unseen. num_pooled: groups whose images have one true class. accuracy: over these,
    of the class with the highest mean probability. predictions: CSV of the pooled predictions, relative to the record.
    """

    num_groups: int
    num_seen: int
    num_pooled: int
    accuracy: MetricValue | None
    predictions: str | None


def summarize(groups: dict[str, Any]) -> list[str]:
    """Return the lines that `inat-ft eval` prints about groups."""
    found = GroupEvaluation.model_validate(groups)
    seen = f"; {found.num_seen:,} of them also have training images" if found.num_seen else ""
    lines = [f"intervals: bootstrap of {found.num_groups:,} groups{seen}"]
    if pooled := found.accuracy:
        text = f"accuracy {pooled.value:.4f} ({pooled.low:.4f} to {pooled.high:.4f})"
        lines.append(f"predictions averaged by group: {text} on {found.num_pooled:,} groups of one class")
    return lines


def evaluate_groups(
    predictions: Predictions, manifest: Manifest, subset: str, metrics: dict[str, MetricValue], directory: Path
) -> tuple[dict[str, MetricValue], dict[str, Any]]:
    """Return the metrics with intervals for grouped images, and the results by group, whose predictions are written to a CSV.

    predictions: of the images of the subset, in the order of the manifest.
    """
    names = _names(manifest, subset)
    training = {manifest.groups[row] for row in manifest.rows("train").tolist()} - {""}
    member = members(manifest, subset)
    pooled = pool(predictions, names)
    file = f"predictions-{subset}-groups.csv"
    if pooled is None:
        (directory / file).unlink(missing_ok=True)
    else:
        write_predictions(directory / file, pooled)
    number = len(pooled) if pooled else 0
    found = GroupEvaluation(
        num_groups=int(member.max()) + 1,
        num_seen=0 if subset == "train" else len(training & set(names)),
        num_pooled=number,
        accuracy=proportion(int(pooled.correct.sum()), number) if pooled else None,
        predictions=file if pooled else None,
    )
    return clustered(predictions, metrics, member), found.model_dump(mode="json")


def _names(manifest: Manifest, subset: str) -> list[str]:
    return [manifest.groups[row] or manifest.paths[row] for row in manifest.rows(subset).tolist()]


def members(manifest: Manifest, subset: str) -> NDArray[np.int64]:
    """Return the number of the group of each image of a subset, `[N]`; an image without a group is one of its own."""
    return np.unique(_names(manifest, subset), return_inverse=True)[1].astype(np.int64)


def pool(p: Predictions, names: Sequence[str]) -> Predictions | None:
    """Return one prediction per group from the mean probabilities of its images; None without such a group.

    names: the group of each image. A group whose images have several true classes, such as a site, has no prediction.
    """
    groups, first, member = np.unique(names, return_index=True, return_inverse=True)
    mean = np.zeros((len(groups), len(p.classes)))
    np.add.at(mean, member, p.require_probabilities())
    mean /= np.bincount(member)[:, None]
    mixed = np.bincount(member, p.true != p.true[first][member]) > 0
    kept = np.flatnonzero(~mixed)
    if not len(kept):
        return None
    return from_probabilities(
        p.classes, groups[kept].tolist(), [""] * len(kept), p.true[first][kept], np.asarray(mean[kept], np.float64)
    )


def clustered(p: Predictions, metrics: dict[str, MetricValue], member: NDArray[np.int64]) -> dict[str, MetricValue]:
    """Return the metrics with clustered intervals; without an interval where the contributions of images are not known.

    member: int64 `[N]`, the number of the group of each image.
    """
    found = {name: MetricValue(value=each.value) for name, each in metrics.items()}
    known: dict[str, Contributions] = {}
    for name in metrics:
        metric = get_metric(name)
        try:
            contributions = contributions_of(metric, p)
        except PluginError:
            continue
        if _is_mean(metric) and len(contributions.values) == len(p):
            known[name] = contributions
    intervals = _intervals(list(known.values()), member)
    for (name, mean), (least, most) in zip(known.items(), intervals, strict=True):
        ends = least - max(0.0, mean.bias), most - min(0.0, mean.bias)
        low, high = np.clip(ends, *get_metric(name).bounds).tolist()
        found[name] = MetricValue(value=metrics[name].value, low=low, high=high, method="bootstrap of groups")
    return found


def _is_mean(metric: Metric) -> bool:
    """Return whether the interval of a metric is that of the mean of its contributions: not so for calibration errors."""
    return isinstance(metric, MeanMetric) or metric.averages_classes or type(metric).interval is Metric.interval


def _intervals(contributions: Sequence[Contributions], member: NDArray[np.int64]) -> list[tuple[float, float]]:
    """Return the interval of each mean from the same random weights of groups."""
    if not contributions:
        return []
    sizes = np.bincount(member).astype(np.float64)
    sums = np.stack([np.bincount(member, each.values) for each in contributions], 1)
    ends = [np.array([getattr(each, end) for each in contributions]) * sizes.mean() for end in ("least", "most")]
    draws: list[list[Floats]] = [[], []]
    generator = np.random.default_rng(0)
    block = max(1, min(_DRAWS, _BLOCK_BYTES // (8 * len(sizes))))
    for start in range(0, _DRAWS, block):
        count = min(block, _DRAWS - start)
        weights, extra = generator.standard_exponential((count, len(sizes))), generator.standard_exponential((count, 1))
        above, below = weights @ sums, (weights @ sizes)[:, None] + extra * sizes.mean()
        for end, drawn in zip(ends, draws, strict=True):
            drawn.append((above + extra * end) / below)
    low, high = (np.quantile(np.concatenate(part), level, 0) for part, level in zip(draws, _LEVELS, strict=True))
    return list(zip(low.tolist(), high.tolist(), strict=True))


def add_groups(candidates: Sequence[Candidate], metric: Metric) -> None:
    """Give the predictions of a comparison their groups of images, from a split of the runs, and scores their intervals.

    Other classifiers that were tested on these images get the same groups. Without a split with groups, nothing changes.
    """
    tested = [p for candidate in candidates for p in candidate.predictions]
    manifests = {c.record.split.fingerprint: c for c in candidates if c.record.split}.values() if tested else ()
    for manifest in filter(None, (candidate.manifest() for candidate in manifests)):
        found = (with_groups(p, manifest) for p in tested if manifest.made.get("group_by"))
        known = next(filter(None, found), None)
        if known:
            for candidate in candidates:
                candidate.predictions = [_like(p, known) for p in candidate.predictions]
                for p in candidate.predictions[:1]:
                    if candidate.score and p.groups is not None:
                        candidate.score = clustered(p, {metric.name: candidate.score}, p.groups)[metric.name]
            return


def _like(p: Predictions, known: Predictions) -> Predictions:
    """Return predictions with the groups of others on the same images; unchanged if they are on other images."""
    aligned = align(p, known)
    return p if isinstance(aligned, str) else replace(p, groups=aligned.groups)


def with_groups(p: Predictions, manifest: Manifest) -> Predictions | None:
    """Return predictions with the groups of a manifest; None if it does not have all of the images."""
    by_hash, by_path = ({name: row for row, name in enumerate(names)} for names in (manifest.hashes, manifest.paths))
    rows = [by_hash.get(digest, by_path.get(path)) for digest, path in zip(p.hashes, p.paths, strict=True)]
    if None in rows:
        return None
    names = [manifest.groups[row] or manifest.paths[row] for row in rows if row is not None]
    return replace(p, groups=np.unique(names, return_inverse=True)[1].astype(np.int64))
