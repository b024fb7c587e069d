"""A run made ready: configuration, images, network and strategy brought together, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from inat_ft.cache.frozen_prefix import PrefixCache
from inat_ft.cache.loaders import EpochLoaders
from inat_ft.cache.packed_images import Pixels
from inat_ft.config import RunConfig, build_strategy
from inat_ft.data.manifest import Manifest, find_manifest, read_manifest
from inat_ft.data.verify import verify_hashes
from inat_ft.engine.device import Compute, choose_compute
from inat_ft.engine.gradients import relative_gradient_norms
from inat_ft.engine.loops import OnStep, StepConfig
from inat_ft.engine.plan import TrainingPlan, make_plan
from inat_ft.errors import UsageError
from inat_ft.images.augment import blender
from inat_ft.models.build import Model, build_model
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft.records import Epoch
from inat_ft.registry import STRATEGIES, plugin_errors
from inat_ft.settings import expand_user
from inat_ft.strategies.base import Strategy


@dataclass(frozen=True)
class Directories:
    """Where runs and caches live."""

    runs: Path
    cache: Path


@dataclass(frozen=True)
class TrainCallbacks:
    """Who hears how a run goes on; every part may stay silent."""

    log: Log = ignore_log
    """A line about what was chosen."""
    progress: ProgressBar = no_progress
    """Progress of a part of the work with a name."""
    on_step: OnStep = lambda done, total, loss, accuracy: None
    """Inside an epoch."""
    on_epoch: Callable[[Epoch], bool | None] = lambda epoch: None
    """After an epoch; True ends the training there and keeps the best so far."""


@dataclass
class Setup:
    """A run made ready: what `train` trains and `train --dry-run` shows."""

    config: RunConfig
    manifest: Manifest
    model: Model
    strategy: Strategy
    plan: TrainingPlan
    compute: Compute

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know before training."""
        with plugin_errors(STRATEGIES, type(self.strategy), "remarks()"):
            return self.strategy.warnings(self.config.optim.epochs)


def prepare(config: RunConfig, load_weights: bool = True, splits: Path = Path("splits")) -> Setup:
    """Resolve the configuration against data, weights and device. Raises an InatFtError naming what is amiss."""
    compute = choose_compute(config.compute.device, config.compute.precision)
    split = expand_user(config.data.split) if config.data.split else find_manifest(splits)
    manifest = read_manifest(split, expand_user(config.data.root) if config.data.root else None)
    if len(manifest.classes) < 2:
        raise UsageError(
            f"{split} has a single class, {', '.join(manifest.classes)}: a classifier needs two or more",
            "add a folder of images for another class, and split again: inat-ft split DATA",
        )
    for subset in ("train", "val"):
        if not len(manifest.rows(subset)):
            raise UsageError(f"{split} has no images in {subset}", "split again: inat-ft split DATA")
    if len(manifest.classes) < 2:
        raise UsageError(f"{split} has a single class, {manifest.classes[0]!r}", "split images of two or more classes")
    strategy: Strategy = build_strategy(config.strategy)
    load = load_weights or strategy.needs_gradients
    sizes = config.data.image_size, config.data.eval_image_size
    model = build_model(config.model, len(manifest.classes), config.seed, sizes[0], load, sizes[1])
    resize = {"resize": config.data.resize, "interpolation": config.data.interpolation}
    model = replace(model, preprocess=model.preprocess.model_copy(update=resize))
    model.net.to(compute.device).to(memory_format=torch.channels_last)
    with plugin_errors(STRATEGIES, type(strategy), "resolve()"):
        strategy = strategy.resolve(model.net, lambda: _gradients(model, manifest, compute))
    with plugin_errors(STRATEGIES, type(strategy), "adapt()"):
        net = strategy.adapt(model.net).to(compute.device)
    plan = make_plan(strategy, net, config.optim.epochs, config.optim.layer_decay)
    resolved = {
        "data": config.data.model_copy(
            update={"split": config.data.split or split.as_posix(), "image_size": model.preprocess.image_size}
        ),
        "strategy": config.strategy.model_copy(update=strategy.model_dump(mode="json")),
    }
    return Setup(config.model_copy(update=resolved), manifest, model, strategy, plan, compute)


def _gradients(model: Model, manifest: Manifest, compute: Compute) -> dict[str, float]:
    rows = manifest.rows("train")
    paths = [manifest.root / manifest.paths[row] for row in rows]
    return relative_gradient_norms(model.net, paths, torch.from_numpy(manifest.labels[rows]), model.preprocess, compute)


def make_loaders(
    setup: Setup, directories: Directories, callbacks: TrainCallbacks, pool: ThreadPoolExecutor
) -> EpochLoaders:
    """What the engine is fed with. Raises DataError when image files changed since the split."""
    config, manifest = setup.config, setup.manifest
    hashes = verify_hashes(manifest, ("train", "val"), directories.cache, config.data.changed, callbacks.progress)
    return EpochLoaders(
        plan=setup.plan,
        train_pixels=_pixels(setup, "train", hashes, directories, pool),
        val_pixels=_pixels(setup, "val", hashes, directories, pool),
        preprocess=setup.model.preprocess,
        prefix_cache=PrefixCache(setup.plan.net, setup.model.preprocess, setup.compute, directories.cache),
        batch_size=config.optim.batch_size,
        seed=config.seed,
        augment=config.data.augment,
        mode=config.compute.cache,
        views=config.data.views,
        image_weights=image_weights(setup),
        blended=bool(config.optim.mixup or config.optim.cutmix),
        progress=callbacks.progress,
        log=callbacks.log,
    )


def _pixels(
    setup: Setup, subset: str, hashes: Sequence[str], directories: Directories, pool: ThreadPoolExecutor
) -> Pixels:
    manifest, rows, preprocess = setup.manifest, setup.manifest.rows(subset), setup.model.preprocess
    return Pixels(
        [manifest.root / manifest.paths[row] for row in rows],
        [hashes[row] for row in rows],
        torch.from_numpy(manifest.labels[rows]).to(setup.compute.device),
        preprocess.image_size if subset == "train" else preprocess.eval_size,
        directories.cache,
        pool,
        preprocess.resizing,
    )


def make_step_config(setup: Setup, log: Log) -> StepConfig:
    """How steps are made, with the network as it stands now as the start that l2-sp pulls to."""
    optim, net = setup.config.optim, setup.plan.net
    start = {}
    if optim.regularize == "l2-sp":
        head = set(net.head.parameters())
        for parameter in net.parameters():
            if id(parameter) in setup.plan.trainable_ids:
                now = parameter.detach()
                at, strength = (torch.zeros_like(now), optim.sp_head) if parameter in head else (now, optim.sp_backbone)
                start[parameter] = at.clone(), strength
    return StepConfig(
        config=optim,
        class_weights=class_weights(setup),
        mix=blender(optim.mixup, optim.cutmix, len(setup.manifest.classes)),
        start=start,
        compile=setup.config.compute.compile,
        log=log,
        accumulation_steps=optim.accumulate,
    )


def _class_counts(setup: Setup) -> Tensor:
    labels = torch.from_numpy(setup.manifest.labels[setup.manifest.rows("train")])
    return torch.bincount(labels, minlength=len(setup.manifest.classes)).clamp(min=1).double()


def class_weights(setup: Setup) -> Tensor | None:
    """Weights of the classes in the loss, `[C]` float32 with a mean of 1 over the images: 1 / images of the class."""
    if setup.config.data.balance != "weights":
        return None
    counts = _class_counts(setup)
    return (counts.sum() / (len(counts) * counts)).float().to(setup.compute.device)


def image_weights(setup: Setup) -> Tensor | None:
    """Weights with which training images are drawn, `[N]` float64: every class equally often."""
    if setup.config.data.balance != "sampler":
        return None
    labels = torch.from_numpy(setup.manifest.labels[setup.manifest.rows("train")])
    return 1 / _class_counts(setup)[labels]
