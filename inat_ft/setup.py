"""Prepare a run: configuration, images, network and strategy, and the directory of the run with its lock."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from inat_ft.cache.frozen_prefix import PrefixCache
from inat_ft.cache.loaders import EpochLoaders, subset_images
from inat_ft.config import RunConfig, build_backbone, build_strategy
from inat_ft.data.manifest import Manifest, find_manifest, read_manifest
from inat_ft.data.verify import verify_hashes
from inat_ft.engine.device import Compute, choose_compute
from inat_ft.engine.distributed import ProcessGroup
from inat_ft.engine.forward import StepConfig
from inat_ft.engine.loops import OnStep, ignore_step
from inat_ft.engine.plan import TrainingPlan, make_plan
from inat_ft.errors import BusyError, InatFtError, PluginError, UsageError
from inat_ft.images.augment import blender
from inat_ft.locks import lock_run
from inat_ft.models.build import Model, build_model
from inat_ft.paths import check_name, relative_path
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft.records import Epoch, SplitInfo
from inat_ft.registry import FEATURES, STRATEGIES, call_plugin, get, plugin_label
from inat_ft.settings import expand_user
from inat_ft.strategies.base import Strategy

T = TypeVar("T")


@dataclass(frozen=True)
class Directories:
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


class SharedSetup:
    """What several runs in one process have in common. The last value of each kind is kept.

    Runs that train only the head share a network: each has its own copy of the head.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[object, Any]] = {}

    def once(self, kind: str, key: object, make: Callable[[], T]) -> T:
        """Return what `make` returned for the same key before, or else call it."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)  # free its memory first
            self._kept[kind] = key, make()
        return cast(T, self._kept[kind][1])


@dataclass
class Setup:
    config: RunConfig
    manifest: Manifest
    model: Model
    strategy: Strategy
    plan: TrainingPlan
    compute: Compute

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings of the device, of the strategy and about random weights."""
        warnings = [*self.compute.warnings, *call_plugin(self.strategy.warnings, self.config.optim.epochs)]
        frozen = sum(parameter.numel() for parameter in self.plan.net.parameters()) - self.plan.num_trainable
        if frozen and self.config.model.weights == "none":
            what = f"the weights are none, so {frozen:,} frozen parameters keep random values"
            warnings.append(f"{what}; the strategy full trains all")
        return warnings

    @property
    def class_counts(self) -> Tensor:
        """The number of training images of each class, at least 1, `[C]` float64."""
        return torch.tensor([row["train"] for row in self.manifest.counts().values()]).clamp(min=1).double()


def prepare(config: RunConfig, load_weights: bool = True, shared: SharedSetup | None = None) -> Setup:
    """Prepare a run without training it. Raises an InatFtError for settings, data or weights that cannot be used.

    load_weights: whether to read the pretrained weights. shared: what other runs of this process have loaded.
    """
    shared = shared or SharedSetup()
    data, compute = config.data, choose_compute(config.compute.device, config.compute.precision)
    split = expand_user(data.split) if data.split else find_manifest()
    root = expand_user(data.root) if data.root else None
    stamp = split.stat().st_mtime_ns if split.exists() else 0
    manifest = shared.once("manifest", (split, root, stamp), partial(read_manifest, split, root))
    _check_manifest(manifest, split)
    strategy: Strategy = build_strategy(config.strategy)
    load_weights = load_weights or strategy.needs_gradients
    build = partial(build_model, config.model, len(manifest.classes), config.seed, data.image_size, load_weights)
    if strategy.trains_head_only and build_backbone(config.model).head_dropout:
        key = (config.model.model_dump(exclude={"dropout"}), config.seed, manifest.classes, data.image_size)
        model = shared.once("model", (*key, load_weights, data.eval_image_size), partial(build, data.eval_image_size))
        model = replace(model, net=model.net.with_own_head(config.model.dropout))
    else:
        model = build(data.eval_image_size)
    if data.resize != "weights":
        resizing = {"resize": data.resize, "interpolation": data.interpolation, "crop_pct": None, "fill": (0, 0, 0)}
        model = replace(model, preprocess=model.preprocess.model_copy(update=resizing))
    compute.place(model.net)
    strategy = call_plugin(strategy.resolve, model.net, lambda: _gradient_norms(model, manifest, compute))
    net = call_plugin(strategy.adapt, model.net).to(compute.device)
    plan = make_plan(strategy, net, config.optim.epochs, config.optim.layer_decay)
    if strategy.trains_head_only and any(plan.frozen_prefix(n) < len(net.stages) for n in range(len(plan.epochs))):
        label = plugin_label(STRATEGIES, type(strategy))
        raise PluginError(f"{label} breaks the contract: it trains more than the head")
    found = {"split": data.split or split.as_posix(), "image_size": model.preprocess.image_size}
    resolved = {
        "data": data.model_copy(update=found),
        "strategy": config.strategy.model_copy(update=strategy.model_dump(mode="json")),
    }
    return Setup(config.model_copy(update=resolved), manifest, model, strategy, plan, compute)


def _check_manifest(manifest: Manifest, split: Path) -> None:
    if len(manifest.classes) < 2:
        problem = f"{split} has a single class, {', '.join(manifest.classes)}: a classifier needs at least two"
        raise UsageError(problem, "add a folder of images for another class, and split again: inat-ft split DATA")
    for subset in ("train", "val"):
        if not len(manifest.rows(subset)):
            raise UsageError(f"{split} has no images in {subset}", "split again: inat-ft split DATA")


def _gradient_norms(model: Model, manifest: Manifest, compute: Compute) -> dict[str, float]:
    rows = manifest.rows("train")
    paths = [manifest.root / manifest.paths[row] for row in rows]
    measure: Callable[..., dict[str, float]] = get(FEATURES, "gradients").load()
    return measure(model.net, paths, torch.from_numpy(manifest.labels[rows]), model.preprocess, compute)


def make_loaders(
    setup: Setup,
    directories: Directories,
    callbacks: TrainCallbacks,
    pool: ThreadPoolExecutor,
    shared: SharedSetup | None = None,
) -> EpochLoaders:
    """Return the data loaders of a run. Raises DataError when image files have changed since the split."""
    config, manifest = setup.config, setup.manifest
    shared = shared or SharedSetup()
    policy, subsets = config.data.changed, ("train", "val")
    verify = partial(verify_hashes, manifest, subsets, directories.cache, policy, callbacks.progress)
    hashes = shared.once("hashes", (manifest.path, manifest.fingerprint, policy), verify)
    cache = PrefixCache(setup.plan.net, setup.model.preprocess, setup.compute, directories.cache)
    if setup.strategy.trains_head_only:  # the frozen stages are those of the shared network
        compute, first = setup.compute, next(iter(setup.plan.net.stages.values()))
        key = first, cache.preprocess, compute.precision, compute.device, compute.forced
        cache = shared.once("cache", (*key, manifest.fingerprint, cache.folder), lambda: cache)
    weights = None
    if config.data.balance == "sampler":
        weights = 1 / setup.class_counts[torch.from_numpy(manifest.labels[manifest.rows("train")])]
    return EpochLoaders(
        plan=setup.plan,
        train_pixels=subset_images(manifest, "train", hashes, cache, pool, config.compute.decode),
        val_pixels=subset_images(manifest, "val", hashes, cache, pool, config.compute.decode),
        prefix_cache=cache,
        config=config,
        image_weights=weights,
        progress=callbacks.progress,
        log=callbacks.log,
    )


def make_step_config(setup: Setup, log: Log) -> StepConfig:
    """Return the settings of an optimizer step. With l2-sp, the current weights are the start."""
    optim, net = setup.config.optim, setup.plan.net
    start: dict[float, dict[nn.Parameter, Tensor]] = {}
    if optim.regularize == "l2-sp":
        head = set(net.head.parameters())
        for parameter in net.parameters():
            if id(parameter) in setup.plan.trainable_ids:
                now = parameter.detach()
                at, strength = (torch.zeros_like(now), optim.sp_head) if parameter in head else (now, optim.sp_backbone)
                start.setdefault(strength, {})[parameter] = at.clone()
    weights, counts = None, setup.class_counts
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
        scaler=torch.amp.GradScaler(setup.compute.device.type, enabled=setup.compute.precision == "fp16"),
    )


def new_directory(config: RunConfig, runs: Path) -> Path:
    """Create the directory of a new run. Without a name, it is called after backbone and strategy, with a number."""
    runs.mkdir(parents=True, exist_ok=True)
    if config.name:
        check_name(config.name)
        directory = runs / config.name
        first_files = ("config.yaml", "crash.txt", "tensorboard", "wandb")  # written before the first checkpoint
        others = (path.name for path in directory.glob("[!.]*") if path.name not in first_files)
        if (directory.exists() and not directory.is_dir()) or any(others):
            problem = f"the run {directory} already exists"
            raise UsageError(problem, f"choose another --name, or resume it: inat-ft train --resume {directory}")
        directory.mkdir(exist_ok=True)
        return directory
    numbers = count(1)
    while True:
        directory = runs / f"{config.model.backbone.replace(':', '-')}-{config.strategy.name}-{next(numbers)}"
        with suppress(FileExistsError):
            directory.mkdir()
            return directory


def discard_untrained(directory: Path) -> None:
    """Remove the directory of a new run that holds only its settings."""
    if {path.name for path in directory.iterdir()} <= {"config.yaml", ".lock"}:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def run_lock(directory: Path, process_group: ProcessGroup) -> Iterator[Path]:
    """Lock a run directory in the main process. Raises BusyError while another process trains it."""
    if not process_group.is_main_process:
        yield directory
        return
    if not directory.is_dir():
        raise UsageError(f"no such run: {directory}")
    with ExitStack() as held:
        try:
            held.enter_context(lock_run(directory))
        except BusyError:
            raise
        except InatFtError:  # the file system has no locks
            with suppress(OSError):  # leave no empty directory behind
                (directory / ".lock").unlink(missing_ok=True)
                directory.rmdir()
            raise
        yield directory


def split_info(manifest: Manifest, directory: Path) -> SplitInfo:
    """Return the entry of a record about its split. The path is relative to the run, so that both can be moved."""
    subsets = [subset for subset in ("train", "val", "test") if len(manifest.rows(subset))]
    return SplitInfo(
        manifest=relative_path(manifest.path.resolve(), directory.resolve()),
        fingerprint=manifest.fingerprint,
        counts={subset: len(manifest.rows(subset)) for subset in subsets},
        subset_fingerprints={subset: manifest.subset_fingerprint(subset) for subset in subsets},
    )
