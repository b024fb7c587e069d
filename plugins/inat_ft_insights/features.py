"""Frozen features: the input of the head of a pretrained network, computed once per image and kept in the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inat_ft.cache.frozen_prefix import IDENTITY, PrefixCache
from inat_ft.cache.loaders import subset_images
from inat_ft.cache.packed_images import Pixels
from inat_ft.config import RunConfig
from inat_ft.data.batches import ImageInput
from inat_ft.data.manifest import Manifest
from inat_ft.data.verify import verify_hashes
from inat_ft.errors import DataError
from inat_ft.progress import ProgressBar, no_progress
from inat_ft.settings import load_config
from inat_ft.setup import Setup, prepare
from inat_ft.threads import decoders

_COMPARED = 64

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """The frozen features of some images of a manifest.

    rows: int64 `[N]`, row numbers of the manifest; values: float32 `[N, D]`; labels: int64 `[N]`; groups: int64 `[N]`,
    equal for images that must stay together.
    """

    manifest: Manifest
    config: RunConfig
    rows: Ints
    values: NDArray[np.float32]
    labels: Ints
    groups: Ints

    def part(self, mask: NDArray[Any]) -> Features:
        """Return the features of some images, by mask or place."""
        columns = {name: getattr(self, name)[mask] for name in ("rows", "values", "labels", "groups")}
        return replace(self, **columns)

    def of(self, subset: str) -> Features:
        """Return the features of the images of a subset."""
        return self.part(np.isin(self.rows, self.manifest.rows(subset)))


def head_config(config: RunConfig) -> RunConfig:
    """Return a configuration with the same network and images whose only trainable part is the head.

    Augmentation and image mixing are switched off, because each image has one feature vector.
    """
    off = {"data.augment": "none", "data.views": 0, "data.balance": "none", "optim.mixup": 0.0, "optim.cutmix": 0.0}
    return load_config(config, [("strategy.name", "head"), *off.items()])


def frozen_features(
    config: RunConfig, cache: Path, subsets: Sequence[str] = ("train", "val"), progress: ProgressBar = no_progress
) -> Features:
    """Return the features of the images of these subsets, in the order of the manifest.

    The cache is the one of `inat-ft train --mode head`. Raises an InatFtError for settings, data or weights that cannot be
    used.
    """
    setup = prepare(head_config(config))
    manifest = setup.manifest
    hashes = verify_hashes(manifest, subsets, cache, setup.config.data.changed, progress)
    kept = PrefixCache(setup.plan.net, setup.model.preprocess, setup.compute, cache)
    found = {}
    with decoders(setup.config.compute.workers) as pool:
        for subset in subsets:
            pixels = subset_images(manifest, subset, hashes, kept, pool)
            with progress(f"features, {subset}") as update:
                found[subset] = _compute(setup, kept, pixels, update)
    rows = np.concatenate([manifest.rows(subset) for subset in subsets])
    values, order = np.concatenate(list(found.values())), np.argsort(rows, kind="stable")
    rows, values = rows[order], values[order]
    return Features(manifest, setup.config, rows, values, manifest.labels[rows], group_numbers(manifest, rows))


def image_features(
    config: RunConfig, cache: Path, paths: Sequence[Path], hashes: Sequence[str], progress: ProgressBar = no_progress
) -> NDArray[np.float32]:
    """Return the features `[N, D]` of image files that are in no manifest. hashes: SHA-256 of each file, in hex."""
    setup = prepare(head_config(config))
    preprocess, labels = setup.model.preprocess, torch.zeros(len(paths), dtype=torch.int64)
    kept = PrefixCache(setup.plan.net, preprocess, setup.compute, cache)
    with decoders(setup.config.compute.workers) as pool, progress("features, new images") as update:
        where, size, resizing = labels.to(setup.compute.device), preprocess.eval_size, preprocess.resizing
        return _compute(setup, kept, Pixels(paths, hashes, where, size, cache, pool, resizing), update)


def _compute(setup: Setup, kept: PrefixCache, pixels: Pixels, update: Any) -> NDArray[np.float32]:
    """Return the output of all stages before the head, `[N, D]`; compute and store the missing rows.

    Raises DataError if a value is not finite.
    """
    depth, count = len(setup.plan.net.stages), len(pixels)
    if not count:
        return np.empty((0, setup.plan.net.head[1].in_features), np.float32)  # type: ignore[arg-type]  # an attribute of a module
    numbers = torch.linspace(0, count - 1, min(_COMPARED, count)).long()
    prepare_input = ImageInput(kept.preprocess.mean, kept.preprocess.std)
    compared = [pixels.hashes[number] for number in numbers.tolist()]
    forward = kept.prefix_forward(
        depth, compared, lambda: prepare_input(pixels.files().rows(numbers).to(pixels.labels.device), numbers)
    )
    source, everything = kept.rows(forward, pixels, IDENTITY, update), torch.arange(count)
    values = kept.activation(depth, pixels.size)(source.rows(everything), everything)
    if not values.isfinite().all():
        hint = "use other weights, or the setting compute.precision=fp32"
        raise DataError("the frozen features contain values that are not finite", hint)
    return values.flatten(1).float().cpu().numpy()


def group_numbers(manifest: Manifest, rows: Ints) -> Ints:
    """Return the number of the group of each row; an image without a group has one of its own."""
    first: dict[str, int] = {}
    names = [manifest.groups[row] for row in rows.tolist()]
    return np.array([first.setdefault(name, place) if name else place for place, name in enumerate(names)], np.int64)
