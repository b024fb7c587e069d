"""Prepare a run: bring configuration, images, network and strategy together before training."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from inat_ft.cache.frozen_prefix import PrefixCache
from inat_ft.cache.loaders import EpochLoaders, subset_images
from inat_ft.config import RunConfig, build_strategy
from inat_ft.data.manifest import Manifest, find_manifest, read_manifest
from inat_ft.data.verify import verify_hashes
from inat_ft.engine.device import Compute, choose_compute
from inat_ft.engine.gradients import relative_gradient_norms
from inat_ft.engine.loops import OnStep, StepConfig, ignore_step
from inat_ft.engine.plan import TrainingPlan, make_plan
from inat_ft.errors import UsageError
from inat_ft.images.augment import blender
from inat_ft.models.build import Model, build_model
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft.records import Epoch
from inat_ft.registry import call_plugin
from inat_ft.settings import expand_user
from inat_ft.strategies.base import Strategy


@dataclass(frozen=True)
class Directories:
    """The folders of runs and caches."""

    runs: Path
    cache: Path


@dataclass(frozen=True)
class TrainCallbacks:
    """Functions that a run calls to report its progress. By default they do nothing."""

    log: Log = ignore_log
    """Called with a line of text, such as a decision or a warning."""
    progress: ProgressBar = no_progress
    """Starts the progress bar of a part of the work."""
    on_step: OnStep = ignore_step
    """Called after each optimizer step."""
    on_epoch: Callable[[Epoch], bool | None] = lambda epoch: None
    """Called after each epoch; returns True to stop training and keep the best epoch so far."""


@dataclass
class Setup:
    """A prepared run."""

    config: RunConfig
    manifest: Manifest
    model: Model
    strategy: Strategy
    plan: TrainingPlan
    compute: Compute

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings of the strategy."""
        return call_plugin(self.strategy.warnings, self.config.optim.epochs)


def prepare(config: RunConfig, load_weights: bool = True, splits: Path = Path("splits")) -> Setup:
    """Prepare a run without training it. Raises an InatFtError for settings, data or weights that cannot be used.

    load_weights: whether to read the pretrained weights. splits: folder in which the newest manifest is searched.
    """
    compute = choose_compute(config.compute.device, config.compute.precision)
    split = expand_user(config.data.split) if config.data.split else find_manifest(splits)
    manifest = _read_split(split, config)
    strategy: Strategy = build_strategy(config.strategy)
    model = _build_model(config, len(manifest.classes), load_weights or strategy.needs_gradients)
    model.net.to(compute.device).to(memory_format=torch.channels_last)
    strategy = call_plugin(strategy.resolve, model.net, lambda: _gradient_norms(model, manifest, compute))
    net = call_plugin(strategy.adapt, model.net).to(compute.device)
    plan = make_plan(strategy, net, config.optim.epochs, config.optim.layer_decay)
    data = {"split": config.data.split or split.as_posix(), "image_size": model.preprocess.image_size}
    resolved = {
        "data": config.data.model_copy(update=data),
        "strategy": config.strategy.model_copy(update=strategy.model_dump(mode="json")),
    }
    return Setup(config.model_copy(update=resolved), manifest, model, strategy, plan, compute)


def _read_split(split: Path, config: RunConfig) -> Manifest:
    manifest = read_manifest(split, expand_user(config.data.root) if config.data.root else None)
    if len(manifest.classes) < 2:
        raise UsageError(
            f"{split} has a single class, {', '.join(manifest.classes)}: a classifier needs at least two",
            "add a folder of images for another class, and split again: inat-ft split DATA",
        )
    for subset in ("train", "val"):
        if not len(manifest.rows(subset)):
            raise UsageError(f"{split} has no images in {subset}", "split again: inat-ft split DATA")
    return manifest


def _build_model(config: RunConfig, num_classes: int, load_weights: bool) -> Model:
    data = config.data
    model = build_model(config.model, num_classes, config.seed, data.image_size, load_weights, data.eval_image_size)
    resizing = {"resize": data.resize, "interpolation": data.interpolation}
    return replace(model, preprocess=model.preprocess.model_copy(update=resizing))


def _gradient_norms(model: Model, manifest: Manifest, compute: Compute) -> dict[str, float]:
    rows = manifest.rows("train")
    paths = [manifest.root / manifest.paths[row] for row in rows]
    return relative_gradient_norms(model.net, paths, torch.from_numpy(manifest.labels[rows]), model.preprocess, compute)


def make_loaders(
    setup: Setup, directories: Directories, callbacks: TrainCallbacks, pool: ThreadPoolExecutor
) -> EpochLoaders:
    """Return the data loaders of a run. Raises DataError when image files have changed since the split."""
    config, manifest, preprocess = setup.config, setup.manifest, setup.model.preprocess
    hashes = verify_hashes(manifest, ("train", "val"), directories.cache, config.data.changed, callbacks.progress)
    cache = PrefixCache(setup.plan.net, preprocess, setup.compute, directories.cache)
    counts = _class_counts(setup)
    return EpochLoaders(
        plan=setup.plan,
        train_pixels=subset_images(manifest, "train", hashes, cache, pool),
        val_pixels=subset_images(manifest, "val", hashes, cache, pool),
        prefix_cache=cache,
        config=config,
        image_weights=1 / counts[_train_labels(setup)] if config.data.balance == "sampler" else None,
        progress=callbacks.progress,
        log=callbacks.log,
    )


def make_step_config(setup: Setup, log: Log) -> StepConfig:
    """Return the settings of an optimizer step. With l2-sp, the current weights are the start."""
    optim, net = setup.config.optim, setup.plan.net
    start = {}
    if optim.regularize == "l2-sp":
        head = set(net.head.parameters())
        for parameter in net.parameters():
            if id(parameter) in setup.plan.trainable_ids:
                now = parameter.detach()
                at, strength = (torch.zeros_like(now), optim.sp_head) if parameter in head else (now, optim.sp_backbone)
                start[parameter] = at.clone(), strength
    weights, counts = None, _class_counts(setup)
    if setup.config.data.balance == "weights":  # with a mean of 1 over the images
        weights = (counts.sum() / (len(counts) * counts)).float().to(setup.compute.device)
    return StepConfig(
        config=optim,
        seed=setup.config.seed,
        class_weights=weights,
        mix=blender(optim.mixup, optim.cutmix, len(setup.manifest.classes)),
        start=start,
        compile=setup.config.compute.compile,
        log=log,
        accumulation_steps=optim.accumulate,
    )


def _train_labels(setup: Setup) -> Tensor:
    return torch.from_numpy(setup.manifest.labels[setup.manifest.rows("train")])


def _class_counts(setup: Setup) -> Tensor:
    """Return the number of training images of each class, at least 1, `[C]` float64."""
    return torch.bincount(_train_labels(setup), minlength=len(setup.manifest.classes)).clamp(min=1).double()
