"""Train one classifier, from a configuration to a run directory."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from inat_ft.cache.loaders import EpochLoaders
from inat_ft.config import RunConfig
from inat_ft.crash import write_crash
from inat_ft.engine.advice import advise
from inat_ft.engine.checkpoint import CheckpointError, CheckpointWriter, load_checkpoint, previous_checkpoint
from inat_ft.engine.device import reproducible
from inat_ft.engine.distributed import convert_sync_layers
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.environment import environment, peak_memory_mib
from inat_ft.engine.fit import EpochTask, Task, Tasks, TrainState, WriteTask, fit, run_tasks
from inat_ft.errors import InatFtError
from inat_ft.evaluation.predictions import from_probabilities, write_predictions
from inat_ft.locks import lock_run
from inat_ft.models.weights import save_model
from inat_ft.records import Epoch, Parameters, RunRecord, read_record, write_record, write_text
from inat_ft.registry import FEATURES, call_plugin, get
from inat_ft.settings import dump_config, portable
from inat_ft.setup import (
    Directories,
    Setup,
    SharedSetup,
    TrainCallbacks,
    discard_untrained,
    make_loaders,
    make_step_config,
    new_directory,
    prepare,
    run_lock,
    split_info,
)
from inat_ft.threads import decoders
from inat_ft.tracking import Trackers, complete_run, make_trackers


def train(
    config: RunConfig, directories: Directories, callbacks: TrainCallbacks | None = None, resume: Path | None = None
) -> tuple[RunRecord, Path]:
    """Train one classifier as described in `inat_ft.train`, and return its record and its directory."""
    if resume is not None and (resume / "record.json").exists():
        record = read_record(resume)[0]
        with suppress(InatFtError, OSError), lock_run(resume):  # it removes temporary files of a killed process
            complete_run(record, resume)
        return record, resume
    with reproducible(config.compute.deterministic):
        return run_tasks(_train(TrainJob(config, directories, callbacks or TrainCallbacks(), resume), SharedSetup()))


@dataclass(frozen=True)
class TrainJob:
    """The arguments of `train`."""

    config: RunConfig
    directories: Directories
    callbacks: TrainCallbacks = field(default_factory=TrainCallbacks)
    resume: Path | None = None


Outcome = tuple[RunRecord, Path] | Exception


def train_together(jobs: Sequence[TrainJob], shared: SharedSetup) -> list[Outcome]:
    """Train several classifiers, an epoch at a time; return the record and the directory of each, or its error.

    Heads on the same cached features are trained in the same steps. shared: what the runs have in common, and what earlier
    calls with it have loaded.
    """
    outcomes: dict[int, Outcome] = {}
    with ExitStack() as stack:
        stack.enter_context(reproducible(any(job.config.compute.deterministic for job in jobs)))
        runs: dict[int, Tasks[tuple[RunRecord, Path]]] = {}
        for number, job in enumerate(jobs):
            if job.resume is not None and (job.resume / "record.json").exists():
                outcomes[number] = read_record(job.resume)[0], job.resume
            else:
                runs[number] = stack.enter_context(closing(_train(job, shared)))

        def advance(number: int, send: Callable[[], Task]) -> Task | None:
            try:
                return send()
            except StopIteration as end:
                outcomes[number] = end.value
            except Exception as error:
                outcomes[number] = error
            return None

        pool = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="results"))
        writing: dict[int, Future[None]] = {}
        waiting = {number: advance(number, partial(next, run)) for number, run in runs.items()}
        while tasks := {number: task for number, task in waiting.items() if task is not None}:
            for number, result in _run_round(tasks, writing, pool).items():
                resume = runs[number].throw if isinstance(result, BaseException) else runs[number].send
                waiting[number] = advance(number, partial(resume, result))
    return [outcomes[number] for number in range(len(jobs))]


def _run_round(tasks: dict[int, Task], writing: dict[int, Future[None]], pool: Executor) -> dict[int, object]:
    """Run one epoch of each run, and write the files of finished runs meanwhile; return results and errors by number.

    writing: the files that are being written, by number, which is updated. They are waited for when no epoch is left.
    """
    run_together = get(FEATURES, "stacked-heads").load()
    epochs = {number: task for number, task in tasks.items() if isinstance(task, EpochTask)}
    for number, task in tasks.items():
        if isinstance(task, WriteTask) and number not in writing:
            writing[number] = pool.submit(task.run)
    results: dict[int, object] = dict(zip(epochs, run_together(list(epochs.values())), strict=True))
    for number in [number for number, future in writing.items() if future.done() or not epochs]:
        results[number] = writing.pop(number).exception()
    return results


def share_batches(setup: Setup, callbacks: TrainCallbacks) -> TrainCallbacks:
    """Prepare the network for several processes; return callbacks that are silent except in the main process."""
    process_group = setup.compute.process_group
    if process_group.size == 1:
        return callbacks
    callbacks = callbacks if process_group.is_main_process else TrainCallbacks()
    if kept := convert_sync_layers(setup.plan.net, process_group.rows):
        callbacks.log(f"warning: {', '.join(kept)} normalizes the rows of each process separately, not the whole batch")
    return callbacks


def _train(job: TrainJob, shared: SharedSetup) -> Tasks[tuple[RunRecord, Path]]:
    started, config, directories, resume = time.perf_counter(), job.config, job.directories, job.resume
    setup, callbacks = prepare(config, shared=shared), job.callbacks
    if setup.compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.compute.device)
    process_group, callbacks = setup.compute.process_group, share_batches(setup, callbacks)
    trackers = make_trackers(config.track) if process_group.is_main_process else Trackers()  # may raise: before mkdir
    new = new_directory(setup.config, directories.runs) if resume is None and process_group.is_main_process else None
    with run_lock(Path(process_group.broadcast(resume or new)), process_group) as directory:
        run = _Run(setup, shared, directory, directories, callbacks, trackers, started)
        record = None
        for warning in setup.warnings:
            callbacks.log(f"warning: {warning}")
        try:
            record = yield from run.train()
        except BaseException as error:
            checkpoint = directory / "resume.pt"
            saved = checkpoint.exists() or previous_checkpoint(checkpoint).exists()
            if saved and not isinstance(error, CheckpointError):
                error.add_note(f"resume: inat-ft train --resume {directory}")
            if new and isinstance(error, InatFtError):
                discard_untrained(new)
            elif isinstance(error, Exception):
                write_crash(error, directory)
            raise
        finally:
            for line in trackers.finish(record):
                callbacks.log(line)
        return record, directory


@dataclass
class _Run:
    setup: Setup
    shared: SharedSetup
    directory: Path
    directories: Directories
    callbacks: TrainCallbacks
    trackers: Trackers
    started: float
    seconds: dict[str, float] = field(default_factory=dict)

    def train(self) -> Tasks[RunRecord]:
        setup, callbacks, directory = self.setup, self.callbacks, self.directory
        is_main = setup.compute.process_group.is_main_process
        config = setup.config.model_copy(update={"name": directory.name})
        checkpoint, identity = directory / "resume.pt", self._identity()
        settings = dump_config(portable(config, directory))
        if is_main and not checkpoint.exists():
            write_text(directory / "config.yaml", settings)

        def on_epoch(epoch: Epoch) -> bool | None:
            self.trackers.log(epoch)
            return callbacks.on_epoch(epoch)

        def save(state: TrainState) -> None:
            if is_main:
                writer.save(checkpoint, state, setup.plan, identity)
                writer.then(partial(self._write_metrics, state.history_lines()))

        with decoders(config.compute.workers) as pool, CheckpointWriter() as writer:
            start = time.perf_counter()
            loaders = make_loaders(setup, self.directories, callbacks, pool, self.shared)
            self.seconds["checking"] = time.perf_counter() - start
            state = TrainState(EarlyStopping(config.stop.patience, config.stop.min_delta, config.stop.monitor))
            step_config = make_step_config(setup, callbacks.log)  # before the weights are loaded: l2-sp needs the start
            logits_shape = len(setup.manifest.rows("val")), len(setup.manifest.classes)
            load_checkpoint(checkpoint, state, setup.plan, config.optim, identity, logits_shape, callbacks.log)
            if is_main:
                write_text(directory / "config.yaml", settings)
            self.trackers.start(config, directory.name, directory, state.history)
            start = time.perf_counter()
            yield from fit(loaders, setup.plan, step_config, setup.compute, state, callbacks.on_step, on_epoch, save)
            self.seconds["training"] = time.perf_counter() - start
        trained = setup.plan.num_trainable  # before merge() removes adapters
        call_plugin(setup.strategy.merge, setup.plan.net)
        if is_main:
            yield WriteTask(partial(self._write_results, config, state, loaders))
        self.seconds["total"] = time.perf_counter() - self.started
        record = self._record(config, state, loaders, trained)
        if is_main:
            write_record(record, directory / "record.json")
            previous_checkpoint(checkpoint).unlink(missing_ok=True)
        return record

    def _identity(self) -> str:
        sections = {"seed", "data", "model", "strategy", "optim", "stop"}
        settings = self.setup.config.model_dump(mode="json", include=sections, exclude={"data": {"split", "root"}})
        content = [settings, self.setup.manifest.fingerprint, self.setup.model.weights_sha256]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _write_metrics(self, lines: str) -> None:
        write_text(self.directory / "metrics.jsonl", lines)

    def _write_results(self, config: RunConfig, state: TrainState, loaders: EpochLoaders) -> None:
        self._write_metrics(state.history_lines())  # again: a process may have been killed after its last checkpoint
        manifest, rows = self.setup.manifest, self.setup.manifest.rows("val")
        assert state.best_logits is not None
        probabilities = state.best_logits.double().softmax(1).numpy()
        if np.isfinite(probabilities).all():  # otherwise a warning was logged
            paths, hashes = [manifest.paths[row] for row in rows], loaders.val_pixels.hashes
            predictions = from_probabilities(manifest.classes, paths, hashes, manifest.labels[rows], probabilities)
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
            environment=self.shared.once("environment", setup.compute.device, partial(environment, setup.compute)),
            weights_sha256=setup.model.weights_sha256,
            predictions={"val": "predictions-val.csv"} if has_predictions else {},
            optimizer_steps=state.steps,
            advice=advise(state.history, state.steps, bool(state.stop_reason)),
        )
