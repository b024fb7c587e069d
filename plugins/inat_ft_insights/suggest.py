"""Which unlabeled photographs to label next: those that the head is unsure about and that differ from each other.

The choice is that of BADGE (Ash et al. 2020, arXiv 1906.03671): k-means++ on the gradients of the head's loss for the
predicted class. A gradient is long if the prediction is uncertain, and similar images have similar gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.config import RunConfig
from inat_ft.data.sources.base import NOT_UTF8, is_ignored, is_text
from inat_ft.errors import UsageError
from inat_ft.images.decode import MAX_PIXELS
from inat_ft.images.scan import scan
from inat_ft.progress import ProgressBar, no_progress
from inat_ft.tables import Table, Tabular
from inat_ft.text import escape_unprintable, pluralize
from inat_ft.threads import num_cores
from inat_ft_insights.classifier import choose_strength, fit_head
from inat_ft_insights.features import Floats, Ints, frozen_features, image_features


@dataclass(frozen=True)
class Suggestion:
    """A photograph to label. probability: of the predicted class; margin: probability less that of the second class."""

    path: Path
    predicted: str
    probability: float
    margin: float

    def to_dict(self) -> dict[str, Any]:
        """Return the suggestion as a row of the CSV."""
        numbers = {"probability": round(self.probability, 4), "margin": round(self.margin, 4)}
        return {"path": self.path.as_posix(), "predicted": self.predicted, **numbers}


@dataclass(frozen=True)
class Suggestions(Tabular):
    """Photographs to label, in the order in which they were chosen.

    photos: number of usable ones that the split does not have; known: number that it has; skipped: unusable files with the
    reason.
    """

    chosen: Sequence[Suggestion]
    photos: int
    known: int
    skipped: dict[str, str]

    @property
    def table(self) -> Table:
        """The suggestions, one row each."""
        columns = {"image": "", "predicted": "", "probability": ".3f", "margin": ".3f"}
        return Table(columns, [list(each.to_dict().values()) for each in self.chosen])

    @property
    def summary(self) -> str:
        """The number of chosen photographs, and of those that the split has, in one sentence."""
        known = f"; {self.known:,} more are in the split already" if self.known else ""
        return f"chosen: {len(self.chosen):,} of {pluralize(self.photos, 'photograph')}{known}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary."""
        chosen = [each.to_dict() for each in self.chosen]
        return {"photos": self.photos, "already_labelled": self.known, "skipped": self.skipped, "suggestions": chosen}


def suggest(
    config: RunConfig, folder: Path, cache: Path, count: int = 100, progress: ProgressBar = no_progress
) -> Suggestions:
    """Choose photographs of a folder as described in `inat_ft.suggest`, without writing files.

    A head is fitted to the frozen features of the training and validation images. Photographs that the split has, by content,
    and copies are left out. Raises UsageError if the folder has no other usable images.
    """
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}", "pass a folder of photographs")
    inside = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    shown = [path for path in inside if not any(map(is_ignored, path.split("/")))]
    paths = [path for path in shown if is_text(path)]
    with progress("scanning") as update:
        scanned = scan(folder, paths, MAX_PIXELS, num_cores(), False, update)
    labelled = frozen_features(config, cache, progress=progress)
    seen, known, new = set(labelled.manifest.hashes), 0, dict[str, Path]()
    skipped = {path: str(why) for path, why in zip(paths, scanned.problems, strict=True) if why}
    unnamed = {escape_unprintable(path): NOT_UTF8[0] for path in shown if not is_text(path)}
    for path, sha256 in zip(paths, scanned.hashes, strict=True):
        if path not in skipped:
            known += sha256 in seen
            new.setdefault(sha256, folder / path)
    files = {sha256: path for sha256, path in new.items() if sha256 not in seen}
    if not files:
        raise UsageError(
            f"{folder} has no usable images that the split does not have", "pass a folder of new photographs"
        )
    values = image_features(config, cache, list(files.values()), list(files), progress)
    classes, seed = labelled.manifest.classes, labelled.config.seed
    strength, _ = choose_strength(labelled.values, labelled.labels, labelled.groups, len(classes), seed)
    head = fit_head(labelled.values, labelled.labels, len(classes), strength)
    probabilities, everyone = head.probabilities(values), list(files.values())
    order = choose_diverse(probabilities, (values - head.mean) * head.scale, count, seed)
    chosen = [_suggestion(everyone[place], probabilities[place], classes) for place in order.tolist()]
    return Suggestions(chosen, len(files), known, skipped | unnamed)


def choose_diverse(probabilities: Floats, values: NDArray[np.float32], count: int, seed: int = 0) -> Ints:
    """Return the places of up to `count` images, by k-means++ on the gradients of the last layer.

    The gradient is the outer product of the residual (probabilities less the one-hot prediction) and the features, so
    products of gradients are products of those of residuals and of features.
    """
    rng, number = np.random.default_rng(seed), len(values)
    residuals = probabilities.copy()
    residuals[np.arange(number), probabilities.argmax(1)] -= 1
    features = np.hstack([values, np.ones((number, 1), np.float32)])
    norms = (residuals**2).sum(1) * (features**2).sum(1)
    chosen, nearest = [int(norms.argmax())], np.full(number, np.inf)
    while len(chosen) < min(count, number):
        last = chosen[-1]
        products = (residuals @ residuals[last]) * (features @ features[last])
        nearest = np.minimum(nearest, np.maximum(norms + norms[last] - 2 * products, 0))
        nearest[chosen] = 0
        total = nearest.sum()
        left = np.setdiff1d(np.arange(number), chosen)
        chosen.append(int(rng.choice(number, p=nearest / total)) if total > 1e-12 else int(left[0]))
    return np.array(chosen, np.int64)


def _suggestion(path: Path, probabilities: Floats, classes: Sequence[str]) -> Suggestion:
    second, first = np.argsort(probabilities)[-2:]
    margin = float(probabilities[first] - probabilities[second])
    return Suggestion(path, classes[first], float(probabilities[first]), margin)
