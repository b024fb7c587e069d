"""One training run from configuration to run directory."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from inat_ft.config import RunConfig, build_strategy
from inat_ft.data.changes import require_unchanged
from inat_ft.data.manifest import Manifest, find_manifest, read_manifest
from inat_ft.data.pixels import Pixels
from inat_ft.data.threads import num_cores
from inat_ft.engine.checkpoint import load_training, save_training
from inat_ft.engine.device import Compute, choose_compute
from inat_ft.engine.environment import environment, peak_memory_mib
from inat_ft.engine.feed import Feed, TickFor, no_progress
from inat_ft.engine.fit import OnStep, Training, fit
from inat_ft.engine.gradients import relative_gradients
from inat_ft.engine.plan import Plan, make_plan
from inat_ft.engine.prefix import PrefixCache
from inat_ft.engine.stopping import EarlyStop
from inat_ft.errors import UsageError
from inat_ft.evaluation.predictions import from_probabilities, write_predictions
from inat_ft.models.build import Model, build_model
from inat_ft.models.weights import save_model
from inat_ft.records import Epoch, Parameters, RunRecord, SplitInfo, read_record, write_record, write_text
from inat_ft.registry import STRATEGIES, blamed
from inat_ft.settings import dump_config
from inat_ft.strategies.base import Strategy
from inat_ft.tracking import Tracker, tracker_for


@dataclass(frozen=True)
class Places:
    """Where runs and caches live."""

    runs: Path
    cache: Path


@dataclass(frozen=True)
class Listener:
    """Who hears how a run goes on; every part may stay silent."""

    say: Callable[[str], None] = lambda line: None
    """A line about what was chosen."""
    tick_for: TickFor = no_progress
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
    plan: Plan
    compute: Compute


def prepare(config: RunConfig, load_weights: bool = True, splits: Path = Path("splits")) -> Setup:
    """Resolve the configuration against data, weights and device. Raises an InatFtError naming what is amiss."""
    compute = choose_compute(config.compute.device, config.compute.precision)
    split = Path(config.data.split) if config.data.split else find_manifest(splits)
    manifest = read_manifest(split, Path(config.data.root) if config.data.root else None)
    for subset in ("train", "val"):
        if not len(manifest.rows(subset)):
            raise UsageError(f"{split} has no images in {subset}", "split again: inat-ft split DATA")
    strategy: Strategy = build_strategy(config.strategy)
    load = load_weights or strategy.needs_gradients
    sizes = config.data.image_size, config.data.eval_image_size
    model = build_model(config.model, len(manifest.classes), config.seed, sizes[0], load, sizes[1])
    model.net.to(compute.device).to(memory_format=torch.channels_last)
    with blamed(STRATEGIES, type(strategy), "choose()"):
        strategy = strategy.choose(model.net, lambda: _gradients(model, manifest, compute))
    with blamed(STRATEGIES, type(strategy), "adapt()"):
        net = strategy.adapt(model.net).to(compute.device)
    plan = make_plan(strategy, net, config.optim.epochs)
    resolved = {
        "data": config.data.model_copy(update={"split": split.as_posix(), "image_size": model.preprocess.image_size}),
        "strategy": config.strategy.model_copy(update=strategy.model_dump(mode="json")),
    }
    return Setup(config.model_copy(update=resolved), manifest, model, strategy, plan, compute)


def _gradients(model: Model, manifest: Manifest, compute: Compute) -> dict[str, float]:
    rows = manifest.rows("train")
    paths = [manifest.root / manifest.paths[row] for row in rows]
    return relative_gradients(model.net, paths, torch.from_numpy(manifest.labels[rows]), model.preprocess, compute)


def train(
    config: RunConfig, places: Places, listener: Listener | None = None, resume: Path | None = None
) -> tuple[RunRecord, Path]:
    """Train one classifier; returns its record and its directory.

    resume: a run directory whose training goes on where it stopped; a finished one is returned as it is. Raises an
    InatFtError for whatever the user can mend; the directory then holds all that is needed to go on.
    """
    listener = listener or Listener()
    if resume is not None and (resume / "record.json").exists():
        return read_record(resume)[0], resume
    if config.compute.deterministic:
        torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    setup = prepare(config)
    with _claimed(resume or _new_directory(setup.config, places.runs)) as directory:
        tracker = tracker_for(config.track)
        run = _Run(setup, directory, places, listener, tracker, started)
        record = None
        tracker.start(setup.config, directory.name, directory)
        try:
            record = run.train()
        finally:
            tracker.finish(record)
        return record, directory


def _new_directory(config: RunConfig, runs: Path) -> Path:
    """An empty directory under the run's name, or under a new name made from backbone and strategy."""
    runs.mkdir(parents=True, exist_ok=True)
    if config.name:
        directory = runs / config.name
        try:
            directory.mkdir()
        except FileExistsError:
            raise UsageError(
                f"the run {directory} exists already",
                f"choose another --name, or go on with it: inat-ft train --resume {directory}",
            ) from None
        return directory
    stem = f"{config.model.backbone.replace(':', '-')}-{config.strategy.name}"
    number = 1
    while True:
        try:
            (runs / f"{stem}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return runs / f"{stem}-{number}"


@contextmanager
def _claimed(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        raise UsageError(f"no such run: {directory}")
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process is training {directory} right now") from None
    try:
        yield directory
    finally:
        lock.release()


@dataclass
class _Run:
    setup: Setup
    directory: Path
    places: Places
    listener: Listener
    tracker: Tracker
    started: float
    seconds: dict[str, float] = field(default_factory=dict)

    def train(self) -> RunRecord:
        setup, config = self.setup, self.setup.config.model_copy(update={"name": self.directory.name})
        write_text(self.directory / "config.yaml", dump_config(config))
        with ThreadPoolExecutor(config.compute.workers or num_cores(), thread_name_prefix="decode") as pool:
            pixels = {subset: self._pixels(subset, pool) for subset in ("train", "val")}
            with self._timed("checking"):
                require_unchanged(
                    setup.manifest, ("train", "val"), self.places.cache, config.data.changed, self.listener.tick_for
                )
            feed = self._feed(config, pixels)
            training = Training(EarlyStop(config.stop.patience, config.stop.min_delta))
            file, identity = self.directory / "resume.pt", self._identity(config)
            net, plan = setup.plan.net, setup.plan
            load_training(file, training, net, plan, config.optim, identity)
            with self._timed("training"):
                fit(
                    net,
                    feed,
                    plan,
                    config.optim,
                    setup.compute,
                    config.seed,
                    training,
                    class_weights(setup, config),
                    self.listener.on_step,
                    self._on_epoch,
                    lambda state: self._save(file, state, identity),
                )
        return self._finish(config, training, feed)

    def _on_epoch(self, epoch: Epoch) -> bool | None:
        self.tracker.log(epoch)
        return self.listener.on_epoch(epoch)

    def _pixels(self, subset: str, pool: ThreadPoolExecutor) -> Pixels:
        manifest, rows = self.setup.manifest, self.setup.manifest.rows(subset)
        preprocess = self.setup.model.preprocess
        return Pixels(
            [manifest.root / manifest.paths[row] for row in rows],
            [manifest.hashes[row] for row in rows],
            torch.from_numpy(manifest.labels[rows]).to(self.setup.compute.device),
            preprocess.image_size if subset == "train" else preprocess.eval_size,
            self.places.cache,
            pool,
        )

    def _feed(self, config: RunConfig, pixels: dict[str, Pixels]) -> Feed:
        setup = self.setup
        cache = PrefixCache(setup.plan.net, setup.model.preprocess, setup.compute, self.places.cache)
        return Feed(
            plan=setup.plan,
            train_pixels=pixels["train"],
            val_pixels=pixels["val"],
            preprocess=setup.model.preprocess,
            prefix_cache=cache,
            batch_size=config.optim.batch_size,
            seed=config.seed,
            augment=config.data.augment,
            mode=config.compute.cache,
            views=config.data.views,
            image_weights=image_weights(setup, config),
            progress=self.listener.tick_for,
            say=self.listener.say,
        )

    def _identity(self, config: RunConfig) -> str:
        """Of all that the run's numbers depend on."""
        parts = config.model_dump(mode="json", include={"seed", "data", "model", "strategy", "optim", "stop"})
        parts["data"].pop("split"), parts["data"].pop("root")
        whole = [parts, self.setup.manifest.fingerprint, self.setup.model.weights_sha256]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _save(self, file: Path, training: Training, identity: str) -> None:
        save_training(file, training, self.setup.plan.net, self.setup.plan, identity)
        lines = (epoch.model_dump_json() for epoch in training.history)
        write_text(self.directory / "metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def _finish(self, config: RunConfig, training: Training, feed: Feed) -> RunRecord:
        setup, manifest = self.setup, self.setup.manifest
        rows = manifest.rows("val")
        assert training.best_logits is not None
        probabilities = training.best_logits.double().softmax(1).numpy()
        predictions = from_probabilities(
            manifest.classes,
            [manifest.paths[row] for row in rows],
            [manifest.hashes[row] for row in rows],
            manifest.labels[rows],
            probabilities,
        )
        write_predictions(self.directory / "predictions-val.csv", predictions)
        trained = setup.plan.num_learned  # counted while adapters, if any, are still there
        with blamed(STRATEGIES, type(setup.strategy), "merge()"):
            setup.strategy.merge(setup.plan.net)
        save_model(
            self.directory / "model.safetensors", setup.plan.net, config, setup.model.preprocess, manifest.classes
        )
        self.seconds["total"] = time.perf_counter() - self.started
        record = self._record(config, training, feed, trained)
        write_record(record, self.directory / "record.json")
        return record

    def _record(self, config: RunConfig, training: Training, feed: Feed, trained: int) -> RunRecord:
        setup, manifest = self.setup, self.setup.manifest
        best = training.history[training.best_epoch - 1]
        total = sum(parameter.numel() for parameter in setup.plan.net.parameters())
        trained_images = len(training.history) * len(manifest.rows("train"))
        return RunRecord(
            name=self.directory.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            val_accuracy=best.val_accuracy,
            classes=list(manifest.classes),
            config=config.model_dump(mode="json"),
            seed=config.seed,
            split=split_info(manifest, self.directory),
            history=training.history,
            best_epoch=training.best_epoch,
            stopped_early=bool(training.stopped),
            parameters=Parameters(total=total, trained=trained),
            seconds={part: round(seconds, 3) for part, seconds in self.seconds.items()},
            images_per_s=round(trained_images / self.seconds["total"], 2),
            peak_memory_mib=peak_memory_mib(setup.compute.device),
            preprocess=setup.model.preprocess.model_dump(mode="json"),
            compute={
                "device": setup.compute.device.type,
                "precision": setup.compute.precision,
                "decisions": feed.decisions,
            },
            environment=environment(setup.compute),
            weights_sha256=setup.model.weights_sha256,
            predictions={"val": "predictions-val.csv"},
        )

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = time.perf_counter() - started


def split_info(manifest: Manifest, directory: Path) -> SplitInfo:
    """What a record says of the data; paths are relative to the run's directory, so that both can move together."""
    subsets = [subset for subset in ("train", "val", "test") if len(manifest.rows(subset))]
    return SplitInfo(
        manifest=Path(os.path.relpath(manifest.path.resolve(), directory.resolve())).as_posix(),
        fingerprint=manifest.fingerprint,
        counts={subset: len(manifest.rows(subset)) for subset in subsets},
        subset_fingerprints={subset: manifest.subset_fingerprint(subset) for subset in subsets},
    )


def _class_counts(setup: Setup) -> Tensor:
    labels = torch.from_numpy(setup.manifest.labels[setup.manifest.rows("train")])
    return torch.bincount(labels, minlength=len(setup.manifest.classes)).clamp(min=1).double()


def class_weights(setup: Setup, config: RunConfig) -> Tensor | None:
    """Weights of the classes in the loss, `[C]` float32 with a mean of 1 over the images: 1 / images of the class."""
    if config.data.balance != "weights":
        return None
    counts = _class_counts(setup)
    return (counts.sum() / (len(counts) * counts)).float().to(setup.compute.device)


def image_weights(setup: Setup, config: RunConfig) -> Tensor | None:
    """Weights with which training images are drawn, `[N]` float64: every class equally often."""
    if config.data.balance != "sampler":
        return None
    labels = torch.from_numpy(setup.manifest.labels[setup.manifest.rows("train")])
    return 1 / _class_counts(setup)[labels]
