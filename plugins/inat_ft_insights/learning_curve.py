"""Accuracy against the number of training images, for a head on frozen features, and its extrapolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.config import RunConfig
from inat_ft.data.manifest import Manifest
from inat_ft.metrics.builtin import proportion
from inat_ft.progress import ProgressBar, ProgressFn, ignore_progress, no_progress
from inat_ft.tables import Table, Tabular
from inat_ft_insights.classifier import choose_strength, fit_head
from inat_ft_insights.features import Features, Floats, Ints, frozen_features
from inat_ft_insights.power_law import Estimate, PowerLaw, fit_power_law
from inat_ft_insights.subsets import nested_subsets, num_images

_FEWEST_TO_FIT = 4
_BOOTSTRAPS = 400
_AHEAD = (2, 4, 8)
_NEAR_CHANCE = 0.75


@dataclass(frozen=True)
class Point:
    """The accuracy for a number of training images, measured or extrapolated, with its 95% interval."""

    kind: str
    images: int
    images_per_class: float
    accuracy: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the point as a row of the CSV."""
        found = self.accuracy
        numbers = {"accuracy": found.value, "low": found.low, "high": found.high}
        return {
            "kind": self.kind,
            "images": self.images,
            "images_per_class": round(self.images_per_class, 2),
            **{name: round(value, 5) for name, value in numbers.items()},
        }


@dataclass(frozen=True)
class LearningCurve(Tabular):
    """A learning curve on the validation images.

    mode: the strategy; points: measured, then extrapolated; needed: images per class for the accuracy `target`, at least the
    smallest measured number, None without a target or a law; law: the extrapolation over images per class, None if fewer than
    four sizes are above chance.
    """

    manifest: Path
    backbone: str
    mode: str
    draws: int
    num_classes: int
    points: Sequence[Point]
    law: PowerLaw | None
    target: float | None
    needed: Estimate | None

    @property
    def measured(self) -> Point:
        """The point of all training images."""
        return [point for point in self.points if point.kind == "measured"][-1]

    @property
    def summary(self) -> str:
        """Sentences on the accuracy now, with twice as many images, and on the images for the target."""
        lines = [f"with {_per_class(self.measured)}: accuracy {_text(self.measured.accuracy)}"]
        if ahead := [point for point in self.points if point.kind == "extrapolated"][:1]:
            lines.append(f"with {_per_class(ahead[0])}, extrapolated: accuracy {_text(ahead[0].accuracy)}")
        if self.needed is not None:
            smallest, sizes = self.points[0].images_per_class, (self.needed.low, self.needed.value, self.needed.high)
            least, middle, most = (_size(each, smallest) for each in sizes)
            interval = most if least.startswith("more") else f"{least} to {most}"
            lines.append(
                f"accuracy {self.target:g}: {middle} training images per class (95% interval {interval}); "
                f"the split has {self.measured.images_per_class:,.0f}"
            )
        return "\n".join(lines)

    @property
    def table(self) -> Table:
        """The points, one row each."""
        columns = {"kind": "", "images": ",", "images_per_class": ".1f", "accuracy": ".4f", "low": ".4f", "high": ".4f"}
        return Table(columns, [list(point.to_dict().values()) for point in self.points])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary. None stands for more images than can be named."""
        sizes = (self.needed.value, self.needed.low, self.needed.high) if self.needed else ()
        named = [size if math.isfinite(size) else None for size in sizes]
        return {
            "manifest": self.manifest.as_posix(),
            "backbone": self.backbone,
            "mode": self.mode,
            "draws": self.draws,
            "points": [point.to_dict() for point in self.points],
            "target": self.target,
            "needed": dict(zip(("images_per_class", "low", "high"), named, strict=True)) if named else None,
        }


def learning_curve(
    config: RunConfig,
    cache: Path,
    draws: int = 10,
    sizes: int = 9,
    target: float | None = None,
    progress: ProgressBar = no_progress,
) -> LearningCurve:
    """Measure the accuracy of a head for several numbers of training images, and extrapolate it.

    The subsets are those of `nested_subsets`. The accuracy is that on the validation images. target: accuracy, 0 to 1, whose
    number of images is wanted. Raises DataError if the classes are too small for at least two sizes.
    """
    features = frozen_features(config, cache, progress=progress)
    with progress("learning curve", "fits") as update:
        return curve_of_features(features.of("train"), features.of("val"), draws, sizes, target, update)


def curve_of_features(
    train: Features,
    val: Features,
    draws: int = 10,
    sizes: int = 9,
    target: float | None = None,
    progress: ProgressFn = ignore_progress,
) -> LearningCurve:
    """Return the learning curve of features that are known."""
    classes, seed = len(train.manifest.classes), train.config.seed
    subsets = nested_subsets(train.labels, train.groups, draws, sizes, seed)
    strength, _ = choose_strength(train.values, train.labels, train.groups, classes, seed)
    done, total = 0, int(subsets.max()) + 1
    wrong: list[NDArray[np.bool_]] = []
    for subset in subsets:
        row = []
        for place in range(total):
            if place == total - 1 and wrong:
                row.append(wrong[0][place])  # all images, in any order
            else:
                chosen = subset <= place
                head = fit_head(train.values[chosen], train.labels[chosen], classes, strength)
                row.append(head.probabilities(val.values).argmax(1) != val.labels)
            progress(done := done + 1, len(subsets) * total)
        wrong.append(np.stack(row))
    return make_curve(np.stack(wrong), subsets, val.groups, train.manifest, train.config, "head", target)


def make_curve(
    wrong: NDArray[np.bool_],
    subsets: Ints,
    val_groups: Ints,
    manifest: Manifest,
    config: RunConfig,
    mode: str,
    target: float | None,
) -> LearningCurve:
    """Return the learning curve from the validation images that are wrong, `[draws, S, M]`, and extrapolate it.

    subsets: as `nested_subsets` returns them; val_groups: `[M]`, equal for validation images that are not independent.
    """
    classes, seed = len(manifest.classes), config.seed
    sizes = num_images(subsets).mean(0) / classes
    errors, covariance, noise = summarize(wrong, sizes, val_groups, seed)
    deviations, groups = np.sqrt(np.diag(covariance)), len(np.unique(val_groups))
    points = [
        Point("measured", round(size * classes), size, _interval(1 - error, deviation, groups))
        for size, error, deviation in zip(sizes.tolist(), errors.tolist(), deviations.tolist(), strict=True)
    ]
    used = np.flatnonzero(errors < _NEAR_CHANCE * (1 - 1 / classes))
    law = None
    if len(used) >= _FEWEST_TO_FIT:
        law = fit_power_law(sizes[used], errors[used], covariance[np.ix_(used, used)], noise, seed)
        for factor in _AHEAD:
            size = float(sizes[-1]) * factor
            points.append(Point("extrapolated", round(size * classes), size, law.accuracy(size)))
    needed = law.size_for(target).at_least(float(sizes[0])) if law and target is not None else None
    backbone, draws = config.model.backbone, len(wrong)
    return LearningCurve(manifest.path, backbone, mode, draws, classes, points, law, target, needed)


def summarize(wrong: NDArray[np.bool_], sizes: Floats, val_groups: Ints, seed: int = 0) -> tuple[Floats, Floats, float]:
    """Return mean errors `[S]`, their covariance `[S, S]`, and the deviation over training sets of the largest size.

    The covariance has two parts: draws and groups of validation images, by a bootstrap over both, and the choice of the
    training images that all draws share. Large subsets of the same images differ little, so the variance over independent
    training sets is estimated from the small ones, as inversely proportional to the size.
    """
    rng, draws = np.random.default_rng(seed), len(wrong)
    member = np.unique(val_groups, return_inverse=True)[1]
    groups = int(member.max()) + 1
    by_group = rng.multinomial(groups, np.full(groups, 1 / groups), _BOOTSTRAPS)
    by_image = by_group[:, member] / (by_group @ np.bincount(member))[:, None]
    by_draw = rng.multinomial(draws, np.full(draws, 1 / draws), _BOOTSTRAPS) / draws
    means = np.einsum("rsm,bm->brs", wrong.astype(np.float32), by_image.astype(np.float32), optimize=True)
    covariance = np.cov(np.einsum("brs,br->bs", means, by_draw).T)
    share = sizes / sizes[-1]
    spread = wrong.mean(2).var(0, ddof=1)[:-1] / (1 - share[:-1]) if draws > 1 else np.zeros(len(sizes) - 1)
    variances = float((spread * sizes[:-1]).mean()) / sizes
    shared = np.sqrt(variances * share)
    covariance = covariance + np.outer(shared, shared) + np.eye(len(sizes)) * (0.5 / groups) ** 2
    return wrong.mean((0, 2)), covariance, float(np.sqrt(variances[-1]))


def _interval(value: float, deviation: float, groups: int) -> Estimate:
    """Return the normal interval, extended to that of one image per group: with few errors, the normal one is too short."""
    exact = proportion(round(value * groups), groups)
    low, high = min(value - 1.96 * deviation, exact.low or 0.0), max(value + 1.96 * deviation, exact.high or 1.0)
    return Estimate(value, max(low, 0.0), min(high, 1.0))


def _per_class(point: Point) -> str:
    return f"{point.images_per_class:,.0f} training images per class"


def _text(found: Estimate) -> str:
    return f"{found.value:.4f} (95% interval {found.low:.4f} to {found.high:.4f})"


def _size(images: float, smallest: float) -> str:
    most = "at most " if images <= smallest else ""  # fewer were not measured
    return "more than a million" if images > 1e6 else f"{most}{images:,.0f}"
