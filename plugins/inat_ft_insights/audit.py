"""Suspected label errors, outliers and ambiguous images, from out-of-fold predictions on frozen features.

Label errors are found by confident learning (Northcutt et al. 2021, arXiv 1911.00068).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.config import RunConfig
from inat_ft.errors import UsageError
from inat_ft.progress import ProgressBar, no_progress
from inat_ft.tables import Table, Tabular
from inat_ft_insights.classifier import choose_strength, fit_head
from inat_ft_insights.features import Features, Floats, Ints, frozen_features

_NEIGHBORS = 10
_FENCE = 3.0
"""Interquartile ranges above the upper quartile from which an image is an outlier: Tukey's outer fence."""
_CLOSE = 0.2
"""Difference of the two highest probabilities below which an image is ambiguous."""
_BLOCK = 1024


class Kind(StrEnum):
    """Why an image is listed."""

    LABEL = "label"  # another class is more probable than its label, and a class has its usual confidence or more
    OUTLIER = "outlier"  # far from every other image
    AMBIGUOUS = "ambiguous"  # two classes are about equally probable


@dataclass(frozen=True)
class Suspect:
    """An image to review.

    suggested: the most probable class other than the label; label_probability, suggested_probability: out-of-fold; distance:
    mean cosine distance to its nearest neighbors, 0 to 2.
    """

    path: str
    subset: str
    label: str
    kind: Kind
    suggested: str
    label_probability: float
    suggested_probability: float
    distance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the suspect as a row of the CSV, without the verdict."""
        numbers = ("label_probability", "suggested_probability", "distance")
        return {**vars(self), "kind": self.kind.value, **{name: round(getattr(self, name), 4) for name in numbers}}


@dataclass(frozen=True)
class Audit(Tabular):
    """The result of an audit. suspects: worst first, and label errors before outliers and ambiguous images.

    estimated_errors: number of wrong labels that the confident joint implies; accuracy: share of out-of-fold predictions that
    equal the label; ranking: int64, places of all audited images, the most suspicious label first; unchecked: classes with a
    single image or group, whose images cannot be checked.
    """

    features: Features
    subsets: Sequence[str]
    suspects: Sequence[Suspect]
    estimated_errors: int
    accuracy: float
    ranking: Ints
    unchecked: Sequence[str]

    def count(self, kind: Kind) -> int:
        """Return the number of suspects of a kind."""
        return sum(suspect.kind is kind for suspect in self.suspects)

    @property
    def table(self) -> Table:
        """The suspects, one row each."""
        columns = {"image": "", "label": "", "kind": "", "suggested": "", "p(label)": ".3f", "p(suggested)": ".3f"}
        rows = [
            (s.path, s.label, s.kind.value, s.suggested, s.label_probability, s.suggested_probability)
            for s in self.suspects
        ]
        return Table(columns, rows)

    @property
    def summary(self) -> str:
        """The numbers of suspects of each kind, in one sentence."""
        return (
            f"suspected label errors: {self.count(Kind.LABEL):,} of {len(self.ranking):,} images "
            f"(estimated number of wrong labels: {self.estimated_errors:,}); "
            f"outliers: {self.count(Kind.OUTLIER):,}; ambiguous: {self.count(Kind.AMBIGUOUS):,}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary."""
        return {
            "manifest": self.features.manifest.path.as_posix(),
            "subsets": list(self.subsets),
            "images": len(self.ranking),
            "out_of_fold_accuracy": self.accuracy,
            "estimated_label_errors": self.estimated_errors,
            "counts": {kind.value: self.count(kind) for kind in Kind},
            "unchecked_classes": list(self.unchecked),
            "suspects": [suspect.to_dict() for suspect in self.suspects],
        }


def audit(
    config: RunConfig,
    cache: Path,
    subsets: Sequence[str] = ("train", "val"),
    progress: ProgressBar = no_progress,
) -> Audit:
    """Audit a split as described in `inat_ft.audit`, without writing files.

    Training and validation images are predicted out of fold. Test images, which are audited only if `subsets` has them, are
    predicted by a head that is fitted to all the others. Raises UsageError if a subset has no images.
    """
    needed = list(dict.fromkeys(("train", "val", *subsets)))
    features = frozen_features(config, cache, needed, progress)
    if empty := [subset for subset in subsets if not len(features.manifest.rows(subset))]:
        raise UsageError(f"{features.manifest.path} has no {empty[0]} images", "choose another subset")
    return audit_features(features, subsets, features.config.seed)


def audit_features(features: Features, subsets: Sequence[str] = ("train", "val"), seed: int = 0) -> Audit:
    """Audit images whose features are known."""
    classes, test = features.manifest.classes, np.isin(features.rows, features.manifest.rows("test"))
    known, probabilities = features.part(~test), np.zeros((len(features.rows), len(classes)))
    strength, probabilities[~test] = choose_strength(known.values, known.labels, known.groups, len(classes), seed)
    if test.any():
        head = fit_head(known.values, known.labels, len(classes), strength)
        probabilities[test] = head.probabilities(features.values[test])
    units = [len(np.unique(known.groups[known.labels == label])) for label in range(len(classes))]
    unchecked = np.flatnonzero(np.array(units) < 2)
    wanted = np.concatenate([features.manifest.rows(subset) for subset in subsets])
    chosen = np.isin(features.rows, wanted) & ~np.isin(features.labels, unchecked)
    distance = neighbor_distance(features.values, features.groups, known=~test)[chosen]
    audited, found = features.part(chosen), probabilities[chosen]
    errors, estimated = confident_errors(found, audited.labels)
    margins = label_margin(found, audited.labels)
    kinds = _kinds(errors, distance, found)
    suspects = [
        _suspect(audited, found, distance, place, kind)
        for kind, score in ((Kind.LABEL, margins), (Kind.OUTLIER, -distance), (Kind.AMBIGUOUS, np.abs(margins)))
        for place in sorted(np.flatnonzero(kinds == kind).tolist(), key=lambda place: score[place])
    ]
    return Audit(
        audited,
        subsets,
        suspects,
        estimated,
        float((found.argmax(1) == audited.labels).mean()) if len(found) else 0.0,
        np.argsort(margins, kind="stable"),
        [classes[label] for label in unchecked],
    )


def confident_errors(probabilities: Floats, labels: Ints) -> tuple[NDArray[np.bool_], int]:
    """Return which labels are confidently wrong, `[N]`, and the estimated number of wrong labels.

    probabilities: out of fold, `[N, C]`. A class is confident for an image if its probability is at least the mean that it
    has for the images labelled with it. A label is not listed if it is the most probable class: an image can be above the low
    mean of a rare class, too. The confident joint counts images by label and most probable confident class; its
    rows are scaled to the number of images of each label. Off its diagonal are the wrong labels.
    """
    count, num_classes = probabilities.shape
    own = probabilities[np.arange(count), labels]
    sizes = np.bincount(labels, minlength=num_classes)
    means = np.bincount(labels, own, minlength=num_classes) / np.maximum(sizes, 1)
    thresholds = np.where(sizes > 0, means, np.inf)  # a class without images is never confident
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely, is_counted = confident.argmax(1), confident.max(1) >= 0
    joint = np.zeros((num_classes, num_classes))
    np.add.at(joint, (labels[is_counted], likely[is_counted]), 1)
    joint *= (sizes / np.maximum(joint.sum(1), 1))[:, None]
    errors = is_counted & (likely != labels) & (probabilities.argmax(1) != labels)
    return errors, round(float(joint.sum() - np.trace(joint)))


def label_margin(probabilities: Floats, labels: Ints) -> Floats:
    """Return the probability of the label minus the highest of the other classes, `[N]`, -1 to 1."""
    every = np.arange(len(labels))
    others = probabilities.copy()
    others[every, labels] = -1.0
    margins: Floats = probabilities[every, labels] - others.max(1)
    return margins


def neighbor_distance(values: NDArray[np.float32], groups: Ints, known: NDArray[np.bool_]) -> Floats:
    """Return the mean cosine distance of each image to its nearest neighbors in other groups, `[N]`.

    known: `[N]`, the images that can be neighbors.
    """
    centered = values - values[known].mean(0)
    unit = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    bank, bank_groups = unit[known], groups[known]
    found = np.zeros(len(values))
    for start in range(0, len(values), _BLOCK):
        part = slice(start, start + _BLOCK)
        distances = 1 - unit[part] @ bank.T
        distances[groups[part, None] == bank_groups] = np.inf
        near = min(_NEIGHBORS, len(bank) - 1)
        nearest = np.partition(distances, near - 1, axis=1)[:, :near]
        finite = np.isfinite(nearest)
        found[part] = np.where(finite, nearest, 0).sum(1) / np.maximum(finite.sum(1), 1)
    return found


def _kinds(errors: NDArray[np.bool_], distance: Floats, probabilities: Floats) -> NDArray[Any]:
    """Return the kind of each image, `[N]`; "" for images that are not listed. A label error takes precedence."""
    kinds = np.full(len(errors), "", dtype=object)
    if len(errors):
        top = np.sort(probabilities, axis=1)[:, -2:]
        kinds[top[:, 1] - top[:, 0] < _CLOSE] = Kind.AMBIGUOUS
        low, high = np.percentile(distance, (25, 75))
        kinds[distance > high + _FENCE * (high - low)] = Kind.OUTLIER
        kinds[errors] = Kind.LABEL
    return kinds


def _suspect(features: Features, probabilities: Floats, distance: Floats, place: int, kind: Kind) -> Suspect:
    manifest, row, label = features.manifest, int(features.rows[place]), int(features.labels[place])
    others = probabilities[place].copy()
    others[label] = -1.0
    suggested = int(others.argmax())
    return Suspect(
        manifest.paths[row],
        ("train", "val", "test")[manifest.subsets[row]],
        manifest.classes[label],
        kind,
        manifest.classes[suggested],
        float(probabilities[place, label]),
        float(probabilities[place, suggested]),
        float(distance[place]),
    )
