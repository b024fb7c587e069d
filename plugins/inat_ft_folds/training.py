"""Train one classifier per fold, and summarize them. A folder holds the run of each fold and the summary."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from inat_ft.api.train import Run
from inat_ft.config import RunConfig
from inat_ft.data.manifest import find_manifest, manifest_text, read_manifest
from inat_ft.engine.device import release_memory
from inat_ft.errors import InatFtError, UsageError
from inat_ft.evaluation.predictions import write_predictions
from inat_ft.locks import lock_run
from inat_ft.paths import FOLDS_SUMMARY
from inat_ft.records import write_text
from inat_ft.settings import dump_config, expand_user, portable
from inat_ft.setup import Directories, SharedSetup, TrainCallbacks, new_directory, split_info
from inat_ft.training import TrainJob, train_together
from inat_ft_folds.drawing import draw_folds
from inat_ft_folds.partition import fold_manifests
from inat_ft_folds.result import (
    OUT_OF_FOLD,
    CrossValidation,
    FoldEntry,
    Summary,
    pooled,
    read_fold,
    read_summary,
    spreads,
    write_summary,
)

MAX_FOLDS = 100
Callbacks = Callable[[RunConfig], TrainCallbacks]
"""Returns the callbacks of a fold."""


def cross_validate(
    config: RunConfig, directories: Directories, folds: int | None, callbacks: Callbacks, resume: Path | None = None
) -> CrossValidation:
    """Train a classifier for each fold on the other folds, as described in `inat_ft.train`.

    resume: the folder of a cross-validation, whose remaining folds are trained; folds: may then be None.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--folds does not work with several processes", "run inat-ft without torchrun")
    if resume is None:
        summary, directory = _start(config, directories, folds or 0)
    else:
        summary, directory = _reopen(resume, folds)
    if summary.complete and all((directory / entry.run / "record.json").is_file() for entry in summary.runs):
        return CrossValidation.open(directory)
    config = config.model_copy(update={"name": summary.name})  # the folder can be renamed, and can be `.`
    try:
        runs = _train_folds(config, directory, directories.cache, summary.folds, callbacks)
        with lock_run(directory):  # removes the temporary files of a killed process
            return _finish(config, summary, directory, runs, callbacks(config))
    except BaseException as error:
        if resume is None and isinstance(error, InatFtError) and not any(directory.glob("*-fold-*")):
            shutil.rmtree(directory, ignore_errors=True)  # nothing has been trained
        else:
            error.__notes__ = [f"resume: inat-ft train --resume {directory}"]
        raise


def _start(config: RunConfig, directories: Directories, folds: int) -> tuple[Summary, Path]:
    """Write the manifests of the folds and the settings into a new directory."""
    if not 2 <= folds <= MAX_FOLDS:
        raise UsageError(f"--folds {folds} is not from 2 to {MAX_FOLDS}", "common numbers of folds are 5 and 10")
    split = expand_user(config.data.split) if config.data.split else find_manifest()
    manifest = read_manifest(split, expand_user(config.data.root) if config.data.root else None)
    fold_manifests(manifest, folds, split.parent)  # raises before a directory is made
    directory = new_directory(config, directories.runs)
    data = config.data.model_copy(update={"split": config.data.split or split.as_posix()})
    config = config.model_copy(update={"name": directory.name, "data": data})
    summary = Summary(
        name=directory.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        folds=folds,
        seed=config.seed,
        split=split_info(manifest, directory),
    )
    try:
        for fold in fold_manifests(manifest, folds, directory / "splits"):
            write_text(fold.path, manifest_text(fold))
        write_summary(summary, directory)
        write_text(directory / "config.yaml", dump_config(portable(config, directory)))  # last: it allows to resume
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)  # nothing has been trained
        raise
    return summary, directory


def _reopen(directory: Path, folds: int | None) -> tuple[Summary, Path]:
    if not (directory / FOLDS_SUMMARY).is_file():
        raise UsageError(
            f"--folds starts a cross-validation, but {directory} is a single run", "remove --folds or --resume"
        )
    summary, directory = read_summary(directory)
    if folds not in (None, summary.folds):
        raise UsageError(f"{directory} has {summary.folds} folds, not {folds}", "remove --folds, or start a new run")
    return summary, directory


def _train_folds(config: RunConfig, directory: Path, cache: Path, folds: int, callbacks: Callbacks) -> list[Run]:
    """Train the folds that have no record yet.

    Their networks start from the same weights, so the outputs of frozen layers are computed for the first fold and found in
    the cache by the others.
    """
    shared = SharedSetup()
    runs: list[Run] = []
    for number in range(1, folds + 1):
        name = f"{config.name}-fold-{number}"
        data = config.data.model_copy(update={"split": str(directory / "splits" / f"fold-{number}.csv")})
        track = config.track.model_copy(update={"files": False})
        fold = config.model_copy(update={"name": name, "data": data, "track": track})
        resume = directory / name if (directory / name / "config.yaml").is_file() else None
        report = callbacks(fold)
        if not (directory / name / "record.json").exists():
            report.log(f"fold {number} of {folds}")
        if runs:
            release_memory()
            gc.freeze()  # the next collection skips the objects that are left
        (outcome,) = train_together([TrainJob(fold, Directories(directory, cache), report, resume)], shared)
        if isinstance(outcome, Exception):
            raise outcome
        (directory / name / "resume.pt").unlink(missing_ok=True)
        runs.append(Run(*outcome))
    return runs


def _finish(
    config: RunConfig, summary: Summary, directory: Path, runs: list[Run], callbacks: TrainCallbacks
) -> CrossValidation:
    """Write the out-of-fold predictions, a figure and the summary."""
    folds = [read_fold(run) for run in runs]
    write_predictions(directory / OUT_OF_FOLD, pooled(folds))
    metrics, errors = spreads(folds)
    for error in errors:
        callbacks.log(f"warning: {error.message}")
    if config.track.files:
        draw_folds(metrics["accuracy"], directory / "folds")
    entries = [_entry(number, run) for number, run in enumerate(runs, 1)]
    done = {
        "complete": True,
        "metrics": metrics,
        "runs": entries,
        "predictions": OUT_OF_FOLD,
        "seconds": round(sum(entry.seconds or 0.0 for entry in entries), 3),
        "notes": [_BIAS] if config.optim.epochs > 1 and config.stop.monitor.startswith("val") else [],
    }
    summary = summary.model_copy(update=done)
    write_summary(summary, directory)
    return CrossValidation(summary, directory, runs)


_BIAS = (
    "the best epoch of each fold was chosen on its held-out images, so the results are slightly optimistic; "
    "--monitor train_loss chooses it on the training images"
)


def _entry(number: int, run: Run) -> FoldEntry:
    record = run.record
    counts = record.split.counts if record.split else {}
    return FoldEntry(
        fold=number,
        run=run.directory.name,
        num_train=counts["train"],
        num_val=counts["val"],
        best_epoch=record.best_epoch,
        seconds=record.seconds.get("total"),
    )
