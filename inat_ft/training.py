"""Train one classifier, from a configuration to a run directory."""

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
from itertools import count
from pathlib import Path

import numpy as np
import torch

from inat_ft.cache.loaders import EpochLoaders
from inat_ft.config import RunConfig
from inat_ft.crash import write_crash
from inat_ft.data.manifest import Manifest
from inat_ft.engine.advice import advise
from inat_ft.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
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
from inat_ft.registry import call_plugin
from inat_ft.settings import dump_config, portable
from inat_ft.setup import Directories, Setup, TrainCallbacks, make_loaders, make_step_config, prepare
from inat_ft.threads import decoders
from inat_ft.tracking import Trackers, make_trackers

__all__ = ["Directories", "Setup", "TrainCallbacks", "find_lr", "prepare", "release_memory", "split_info", "train"]


def find_lr(config: RunConfig, directories: Directories, callbacks: TrainCallbacks | None = None) -> LRFinderResult:
    """Run a learning-rate range test of a configuration. Only the caches are written."""
    with reproducible(config.compute.deterministic), decoders(config.compute.workers) as pool:
        setup = prepare(config)
        callbacks = _share_batches(setup, callbacks or TrainCallbacks())
        loaders = make_loaders(setup, directories, callbacks, pool)
        return lr_range_test(loaders, setup.plan, make_step_config(setup, callbacks.log), setup.compute)


def train(
    config: RunConfig, directories: Directories, callbacks: TrainCallbacks | None = None, resume: Path | None = None
) -> tuple[RunRecord, Path]:
    """Train one classifier and return its record and its directory.

    resume: directory of an interrupted run to continue after its last finished epoch. The record of a finished run is
    returned without training. Raises an InatFtError for problems that the user can fix; the run can then be resumed.
    """
    if resume is not None and (resume / "record.json").exists():
        return read_record(resume)[0], resume
    with reproducible(config.compute.deterministic):
        return _train(config, directories, callbacks or TrainCallbacks(), resume)


def release_memory() -> None:
    """Free the memory of the previous training. Call it between trainings in one process.

    Networks that torch.fx traced contain reference cycles, which only the garbage collector frees.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _share_batches(setup: Setup, callbacks: TrainCallbacks) -> TrainCallbacks:
    """Prepare the network for several processes; return callbacks that are silent except in the main process."""
    process_group = setup.compute.process_group
    if process_group.size == 1:
        return callbacks
    callbacks = callbacks if process_group.is_main_process else TrainCallbacks()
    if kept := convert_sync_layers(setup.plan.net, process_group.rows):
        callbacks.log(f"warning: {', '.join(kept)} normalizes the rows of each process separately, not the whole batch")
    return callbacks


def _train(
    config: RunConfig, directories: Directories, callbacks: TrainCallbacks, resume: Path | None
) -> tuple[RunRecord, Path]:
    started = time.perf_counter()
    setup = prepare(config)
    process_group, callbacks = setup.compute.process_group, _share_batches(setup, callbacks)
    trackers = make_trackers(config.track) if process_group.is_main_process else Trackers()  # may raise: before mkdir
    new = _new_directory(setup.config, directories.runs) if resume is None and process_group.is_main_process else None
    with _run_lock(Path(process_group.broadcast(resume or new)), process_group) as directory:
        run = _Run(setup, directory, directories, callbacks, trackers, started)
        record = None
        for warning in setup.warnings:
            callbacks.log(f"warning: {warning}")
        try:
            record = run.train()
        except BaseException as error:
            if (directory / "resume.pt").exists() and not isinstance(error, CheckpointError):
                error.add_note(f"resume: inat-ft train --resume {directory}")
            if isinstance(error, Exception):
                write_crash(error, directory)
            raise
        finally:
            for line in trackers.finish(record):
                callbacks.log(line)
        return record, directory


def _new_directory(config: RunConfig, runs: Path) -> Path:
    """Create the directory of a new run. Without a name, it is called after backbone and strategy, with a number."""
    runs.mkdir(parents=True, exist_ok=True)
    stem = f"{config.model.backbone.replace(':', '-')}-{config.strategy.name}"
    for number in count(1):
        directory = runs / (config.name or f"{stem}-{number}")
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            if config.name and _is_unused(directory):
                return directory
            if config.name:
                raise UsageError(
                    f"the run {directory} already exists",
                    f"choose another --name, or resume it: inat-ft train --resume {directory}",
                ) from None
    raise AssertionError


def _is_unused(directory: Path) -> bool:
    """Return whether a directory holds only what a run writes before its first checkpoint."""
    return directory.is_dir() and all(
        path.name in ("config.yaml", "crash.txt", "wandb") or path.name.startswith(".") for path in directory.iterdir()
    )


@contextmanager
def _run_lock(directory: Path, process_group: ProcessGroup) -> Iterator[Path]:
    """Lock a run directory in the main process. Raises BusyError while another process trains it."""
    if not process_group.is_main_process:
        yield directory
        return
    if not directory.is_dir():
        raise UsageError(f"no such run: {directory}")
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"another process is training {directory}", "wait until it has finished") from None
    except InatFtError:
        with suppress(OSError):  # leave no empty directory behind
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
        """Whether this process writes files."""
        return self.setup.compute.process_group.is_main_process

    def train(self) -> RunRecord:
        setup, callbacks = self.setup, self.callbacks
        config = setup.config.model_copy(update={"name": self.directory.name})
        if self.is_main:
            write_text(self.directory / "config.yaml", dump_config(portable(config, self.directory)))
        file, identity = self.directory / "resume.pt", self._identity(config)
        with decoders(config.compute.workers) as pool:
            start = time.perf_counter()
            loaders = make_loaders(setup, self.directories, callbacks, pool)
            self.seconds["checking"] = time.perf_counter() - start
            stop = config.stop
            state = TrainState(EarlyStopping(stop.patience, stop.min_delta, stop.monitor))
            step_config = make_step_config(setup, callbacks.log)  # before the weights are loaded: l2-sp needs the start
            load_checkpoint(file, state, setup.plan, config.optim, identity)
            self.trackers.start(config, self.directory.name, self.directory, state.history)
            start, save = time.perf_counter(), partial(self._save, file, identity)
            fit(loaders, setup.plan, step_config, setup.compute, state, callbacks.on_step, self._on_epoch, save)
            self.seconds["training"] = time.perf_counter() - start
        return self._finish(config, state, loaders)

    def _on_epoch(self, epoch: Epoch) -> bool | None:
        self.trackers.log(epoch)
        return self.callbacks.on_epoch(epoch)

    def _identity(self, config: RunConfig) -> str:
        """Return a hash of everything that decides the numbers of the run."""
        settings = config.model_dump(mode="json", include={"seed", "data", "model", "strategy", "optim", "stop"})
        settings["data"].pop("split"), settings["data"].pop("root")
        content = [settings, self.setup.manifest.fingerprint, self.setup.model.weights_sha256]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _save(self, file: Path, identity: str, state: TrainState) -> None:
        if self.is_main:
            save_checkpoint(file, state, self.setup.plan, identity)
            lines = (f"{epoch.model_dump_json()}\n" for epoch in state.history)
            write_text(self.directory / "metrics.jsonl", "".join(lines))

    def _finish(self, config: RunConfig, state: TrainState, loaders: EpochLoaders) -> RunRecord:
        trained = self.setup.plan.num_trainable  # before merge() removes adapters
        call_plugin(self.setup.strategy.merge, self.setup.plan.net)
        if self.is_main:
            self._write_results(config, state, loaders)
        self.seconds["total"] = time.perf_counter() - self.started
        record = self._record(config, state, loaders, trained)
        if self.is_main:
            write_record(record, self.directory / "record.json")
        return record

    def _write_results(self, config: RunConfig, state: TrainState, loaders: EpochLoaders) -> None:
        manifest, rows = self.setup.manifest, self.setup.manifest.rows("val")
        assert state.best_logits is not None
        probabilities = state.best_logits.double().softmax(1).numpy()
        paths, hashes = [manifest.paths[row] for row in rows], loaders.val_pixels.hashes
        predictions = from_probabilities(manifest.classes, paths, hashes, manifest.labels[rows], probabilities)
        if np.isfinite(probabilities).all():  # otherwise a warning was logged
            write_predictions(self.directory / "predictions-val.csv", predictions)
        preprocess = self.setup.model.preprocess
        save_model(self.directory / "model.safetensors", self.setup.plan.net, config, preprocess, manifest.classes)

    def _record(self, config: RunConfig, state: TrainState, loaders: EpochLoaders, trained: int) -> RunRecord:
        setup, manifest = self.setup, self.setup.manifest
        best = state.history[state.best_epoch - 1]
        total = sum(parameter.numel() for parameter in setup.plan.net.parameters())
        num_images = len(state.history) * len(manifest.rows("train"))
        has_predictions = (self.directory / "predictions-val.csv").exists()
        return RunRecord(
            name=self.directory.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            val_accuracy=best.val_accuracy,
            classes=list(manifest.classes),
            config=config.model_dump(mode="json"),
            seed=config.seed,
            split=split_info(manifest, self.directory),
            history=state.history,
            best_epoch=state.best_epoch,
            stopped_early=bool(state.stop_reason),
            parameters=Parameters(total=total, trained=trained),
            seconds={part: round(seconds, 3) for part, seconds in self.seconds.items()},
            images_per_s=round(num_images / self.seconds["total"], 2),
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
            predictions={"val": "predictions-val.csv"} if has_predictions else {},
            optimizer_steps=state.steps,
            advice=advise(state.history, state.steps, bool(state.stop_reason)),
        )


def split_info(manifest: Manifest, directory: Path) -> SplitInfo:
    """Return the entry of a record about its split. The path is relative to the run, so that both can be moved."""
    subsets = [subset for subset in ("train", "val", "test") if len(manifest.rows(subset))]
    return SplitInfo(
        manifest=Path(os.path.relpath(manifest.path.resolve(), directory.resolve())).as_posix(),
        fingerprint=manifest.fingerprint,
        counts={subset: len(manifest.rows(subset)) for subset in subsets},
        subset_fingerprints={subset: manifest.subset_fingerprint(subset) for subset in subsets},
    )
