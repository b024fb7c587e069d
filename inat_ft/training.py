"""One training run from configuration to run directory."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from inat_ft.cache.loaders import EpochLoaders
from inat_ft.config import RunConfig
from inat_ft.crash import write_crash
from inat_ft.data.manifest import Manifest
from inat_ft.engine.advice import advise
from inat_ft.engine.checkpoint import CheckpointError, load_training, save_training
from inat_ft.engine.device import reproducible
from inat_ft.engine.distributed import ProcessGroup, convert_sync_layers
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.environment import environment, peak_memory_mib
from inat_ft.engine.fit import TrainState, fit
from inat_ft.engine.lr_finder import LRFinderResult, lr_range_test
from inat_ft.errors import BusyError, InatFtError, UsageError
from inat_ft.evaluation.predictions import from_probabilities, write_predictions
from inat_ft.locks import FileLock, Timeout
from inat_ft.models.weights import save_model
from inat_ft.records import Epoch, Parameters, RunRecord, SplitInfo, read_record, write_record, write_text
from inat_ft.registry import STRATEGIES, plugin_errors
from inat_ft.settings import dump_config, portable
from inat_ft.setup import Directories, Setup, TrainCallbacks, make_loaders, make_step_config, prepare
from inat_ft.threads import decoders
from inat_ft.tracking import Trackers, make_trackers

__all__ = ["Directories", "Setup", "TrainCallbacks", "find_lr", "prepare", "release_memory", "split_info", "train"]


def find_lr(config: RunConfig, directories: Directories, callbacks: TrainCallbacks | None = None) -> LRFinderResult:
    """A learning-rate range test of what the configuration would train. Nothing is written but the caches."""
    callbacks = callbacks or TrainCallbacks()
    with reproducible(config.compute.deterministic), decoders(config.compute.workers) as pool:
        setup = prepare(config)
        callbacks = _shared(setup, callbacks)
        loaders = make_loaders(setup, directories, callbacks, pool)
        step_config = make_step_config(setup, callbacks.log)
        return lr_range_test(setup.plan.net, loaders, setup.plan, step_config, setup.compute, config.seed)


def _shared(setup: Setup, callbacks: TrainCallbacks) -> TrainCallbacks:
    """Make the network look at the batches of all processes; return the listener of this one, silent but for the first."""
    process_group = setup.compute.process_group
    left = convert_sync_layers(setup.plan.net, process_group.rows) if process_group.size > 1 else []
    callbacks = callbacks if process_group.is_main_process else TrainCallbacks()
    if left:
        callbacks.log(f"warning: {', '.join(left)} looks at each process's share of a batch, not at the whole batch")
    return callbacks


def train(
    config: RunConfig, directories: Directories, callbacks: TrainCallbacks | None = None, resume: Path | None = None
) -> tuple[RunRecord, Path]:
    """Train one classifier; returns its record and its directory.

    resume: a run directory whose training goes on where it stopped; a finished one is returned as it is. Raises an
    InatFtError for whatever the user can mend; the directory then holds all that is needed to go on.
    """
    if resume is not None and (resume / "record.json").exists():
        return read_record(resume)[0], resume
    with reproducible(config.compute.deterministic):
        return _train(config, directories, callbacks or TrainCallbacks(), resume)


def _train(
    config: RunConfig, directories: Directories, callbacks: TrainCallbacks, resume: Path | None
) -> tuple[RunRecord, Path]:
    started = time.perf_counter()
    setup = prepare(config)
    process_group, callbacks = setup.compute.process_group, _shared(setup, callbacks)
    trackers = make_trackers(config.track) if process_group.is_main_process else Trackers()
    new = _new_directory(setup.config, directories.runs) if resume is None and process_group.is_main_process else None
    with _run_lock(Path(process_group.broadcast(resume or new)), process_group) as directory:
        run = _Run(setup, directory, directories, callbacks, trackers, started)
        record = None
        for info in setup.warnings:
            callbacks.log(f"warning: {info}")
        try:
            record = run.train()
        except BaseException as stop:
            if (directory / "resume.pt").exists() and not isinstance(stop, CheckpointError):
                stop.add_note(f"go on: inat-ft train --resume {directory}")
            if isinstance(stop, Exception):
                write_crash(stop, directory)
            raise
        finally:
            for line in trackers.finish(record):
                callbacks.log(line)
        return record, directory


def release_memory() -> None:
    """Free what the training before this one held; to be called in between by who trains many in one process.

    Its stages, traced by torch.fx, refer to themselves, so that they would stay until Python looks for such circles. What
    survives is not looked through again: each time costs the new objects only.
    """
    gc.collect()
    gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _new_directory(config: RunConfig, runs: Path) -> Path:
    """A directory that holds no run yet, under the run's name or a new name made from backbone and strategy."""
    runs.mkdir(parents=True, exist_ok=True)
    if config.name:
        directory = runs / config.name
        try:
            directory.mkdir()
        except FileExistsError:
            if not _is_unused(directory):
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


def _is_unused(directory: Path) -> bool:
    """Whether nothing is there but what a run writes before its first epoch is over."""
    return directory.is_dir() and all(
        path.name in ("config.yaml", "crash.txt", "wandb") or path.name.startswith(".") for path in directory.iterdir()
    )


@contextmanager
def _run_lock(directory: Path, process_group: ProcessGroup) -> Iterator[Path]:
    if not process_group.is_main_process:
        yield directory
        return
    if not directory.is_dir():
        raise UsageError(f"no such run: {directory}")
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"another process is training {directory} right now", "wait until it has finished") from None
    except InatFtError:
        with suppress(OSError):  # a directory that was made for this run is empty: nothing stays behind
            (directory / ".lock").unlink(missing_ok=True)
            directory.rmdir()
        raise
    try:
        yield directory
    finally:
        lock.release()


@dataclass
class _Run:
    setup: Setup
    directory: Path
    directories: Directories
    callbacks: TrainCallbacks
    trackers: Trackers
    started: float
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.setup.compute.process_group.is_main_process

    def train(self) -> RunRecord:
        setup, config = self.setup, self.setup.config.model_copy(update={"name": self.directory.name})
        if self.is_main:
            write_text(self.directory / "config.yaml", dump_config(portable(config, self.directory)))
        with decoders(config.compute.workers) as pool:
            with self._timed("checking"):
                loaders = make_loaders(setup, self.directories, self.callbacks, pool)
            stop = config.stop
            training = TrainState(EarlyStopping(stop.patience, stop.min_delta, stop.monitor))
            file, identity = self.directory / "resume.pt", self._identity(config)
            net, plan = setup.plan.net, setup.plan
            step_config = make_step_config(setup, self.callbacks.log)  # before the checkpoint: it remembers the start
            load_training(file, training, net, plan, config.optim, identity)
            self.trackers.start(config, self.directory.name, self.directory, training.history)
            with self._timed("training"):
                callbacks, compute = self.callbacks, setup.compute
                save = partial(self._save, file, identity)
                fit(
                    net,
                    loaders,
                    plan,
                    step_config,
                    compute,
                    config.seed,
                    training,
                    callbacks.on_step,
                    self._on_epoch,
                    save,
                )
        return self._finish(config, training, loaders)

    def _on_epoch(self, epoch: Epoch) -> bool | None:
        self.trackers.log(epoch)
        return self.callbacks.on_epoch(epoch)

    def _identity(self, config: RunConfig) -> str:
        """Of all that the run's numbers depend on."""
        accumulation_steps = config.model_dump(
            mode="json", include={"seed", "data", "model", "strategy", "optim", "stop"}
        )
        accumulation_steps["data"].pop("split"), accumulation_steps["data"].pop("root")
        whole = [accumulation_steps, self.setup.manifest.fingerprint, self.setup.model.weights_sha256]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _save(self, file: Path, identity: str, training: TrainState) -> None:
        if not self.is_main:
            return
        save_training(file, training, self.setup.plan.net, self.setup.plan, identity)
        lines = (epoch.model_dump_json() for epoch in training.history)
        write_text(self.directory / "metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def _finish(self, config: RunConfig, training: TrainState, loaders: EpochLoaders) -> RunRecord:
        trained = self.setup.plan.num_trainable  # counted while adapters, if any, are still there
        with plugin_errors(STRATEGIES, type(self.setup.strategy), "merge()"):
            self.setup.strategy.merge(self.setup.plan.net)
        if self.is_main:
            self._write_results(config, training, loaders)
        self.seconds["total"] = time.perf_counter() - self.started
        record = self._record(config, training, loaders, trained)
        if self.is_main:
            write_record(record, self.directory / "record.json")
        return record

    def _write_results(self, config: RunConfig, training: TrainState, loaders: EpochLoaders) -> None:
        setup, manifest = self.setup, self.setup.manifest
        rows = manifest.rows("val")
        assert training.best_logits is not None
        probabilities = training.best_logits.double().softmax(1).numpy()
        predictions = from_probabilities(
            manifest.classes,
            [manifest.paths[row] for row in rows],
            loaders.val_pixels.hashes,
            manifest.labels[rows],
            probabilities,
        )
        if np.isfinite(probabilities).all():  # else the run has said that the network's output is not finite
            write_predictions(self.directory / "predictions-val.csv", predictions)
        save_model(
            self.directory / "model.safetensors", setup.plan.net, config, setup.model.preprocess, manifest.classes
        )

    def _record(self, config: RunConfig, training: TrainState, loaders: EpochLoaders, trained: int) -> RunRecord:
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
            stopped_early=bool(training.stop_reason),
            parameters=Parameters(total=total, trained=trained),
            seconds={part: round(seconds, 3) for part, seconds in self.seconds.items()},
            images_per_s=round(trained_images / self.seconds["total"], 2),
            peak_memory_mib=peak_memory_mib(setup.compute.device),
            preprocess=setup.model.preprocess.model_dump(mode="json"),
            compute={
                "device": setup.compute.device.type,
                "precision": setup.compute.precision,
                "processes": setup.compute.process_group.size,
                "decisions": loaders.decisions,
            },
            environment=environment(setup.compute),
            weights_sha256=setup.model.weights_sha256,
            predictions={"val": file.name} if (file := self.directory / "predictions-val.csv").exists() else {},
            optimizer_steps=training.steps,
            advice=advise(training.history, training.steps, bool(training.stop_reason)),
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
