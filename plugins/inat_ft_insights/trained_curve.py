"""The learning curve of a strategy: one training per draw and size. Finished trainings are kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.config import RunConfig
from inat_ft.data.manifest import Manifest, manifest_text
from inat_ft.engine.device import release_memory
from inat_ft.errors import UsageError
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.locks import lock_run
from inat_ft.records import write_text
from inat_ft.settings import load_config
from inat_ft.setup import Directories, SharedSetup, TrainCallbacks, prepare
from inat_ft.text import pluralize
from inat_ft.training import TrainJob, train_together
from inat_ft_insights.features import Ints, group_numbers, head_config
from inat_ft_insights.learning_curve import LearningCurve, make_curve
from inat_ft_insights.subsets import nested_subsets


@dataclass(frozen=True)
class _Training:
    """One training: its settings, its images, and the file of its predictions on the validation images."""

    config: RunConfig
    manifest: Manifest
    draw: int
    file: Path

    @property
    def num_images(self) -> int:
        return len(self.manifest.rows("train"))


def trained_curve(
    config: RunConfig,
    folder: Path,
    cache: Path,
    draws: int = 3,
    sizes: int = 5,
    target: float | None = None,
    callbacks: TrainCallbacks | None = None,
) -> LearningCurve:
    """Measure the accuracy of a strategy for several numbers of training images, and extrapolate it.

    The subsets are those of `nested_subsets`; draw d is trained with the seed of the configuration plus d. folder: gets the
    predictions of each training, which a later call with the same settings and images reads. Raises DataError if the classes
    are too small for at least two sizes, BusyError if another process uses the folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("learning-curve does not work with several processes", "run inat-ft without torchrun")
    manifest = prepare(head_config(config), load_weights=False).manifest
    rows = manifest.rows("train")
    subsets = nested_subsets(manifest.labels[rows], group_numbers(manifest, rows), draws, sizes, config.seed)
    try:
        (folder / "points").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot create the folder {folder / 'points'}: {error.strerror}"
        raise UsageError(problem, "choose another folder with --out") from None
    with lock_run(folder):
        trainings = list(_trainings(config, manifest, subsets, folder))
        _train_missing(trainings, folder / "runs", cache, callbacks or TrainCallbacks())
        wrong = [~read_predictions(training.file).correct for training in trainings]
    shape, val_groups = (
        (len(subsets), len(trainings) // len(subsets), -1),
        group_numbers(manifest, manifest.rows("val")),
    )
    stacked = np.stack(wrong).reshape(shape)
    return make_curve(stacked, subsets, val_groups, manifest, config, config.strategy.name, target)


def _trainings(config: RunConfig, manifest: Manifest, subsets: Ints, folder: Path) -> Iterator[_Training]:
    rows = manifest.rows("train")
    for draw, subset in enumerate(subsets):
        for place in range(int(subsets.max()) + 1):
            chosen = np.sort(np.concatenate([rows[subset <= place], manifest.rows("val")]))
            part = _take(manifest, chosen)
            own = load_config(config, [("seed", config.seed + draw), ("track.files", False)])
            name = f"draw-{draw + 1}-images-{len(part.rows('train'))}-{_key(own, part)}"
            part = replace(part, path=folder / "runs" / f"{name}.csv")
            named = load_config(own, [("name", name), ("data.split", str(part.path)), ("data.root", None)])
            yield _Training(named, part, draw, folder / "points" / f"{name}.csv")


def _key(config: RunConfig, manifest: Manifest) -> str:
    """Return a name for the settings and images that decide the result of a training."""
    sections: dict[str, Any] = {name: True for name in ("seed", "model", "strategy", "optim", "stop")}
    sections["data"], sections["compute"] = set(type(config.data).model_fields) - {"split", "root"}, {"precision"}
    settings = config.model_dump(mode="json", include=sections)
    return hashlib.sha256(json.dumps([settings, manifest.fingerprint], sort_keys=True).encode()).hexdigest()[:8]


def _take(manifest: Manifest, rows: NDArray[np.int64]) -> Manifest:
    """Return a manifest of some rows."""
    lists: dict[str, Sequence[str]] = {
        name: [getattr(manifest, name)[row] for row in rows.tolist()] for name in ("paths", "hashes", "groups")
    }
    return replace(
        manifest,
        paths=lists["paths"],
        hashes=lists["hashes"],
        groups=lists["groups"],
        labels=manifest.labels[rows],
        subsets=manifest.subsets[rows],
        fingerprint="",
    )


def _train_missing(trainings: Sequence[_Training], runs: Path, cache: Path, callbacks: TrainCallbacks) -> None:
    """Train what has no predictions yet. Each training is removed when its predictions are stored."""
    missing, shared = [training for training in trainings if not training.file.is_file()], SharedSetup()
    if missing:
        callbacks.log(_announcement(trainings, missing))
    for number, training in enumerate(missing, 1):
        started = time.perf_counter()
        try:
            _train(training, Directories(runs, cache), replace(callbacks, log=_warnings(callbacks)), shared)
        except BaseException as error:
            done = len(trainings) - len(missing) + number - 1
            error.__notes__ = [f"{done} of {len(trainings)} runs are finished; the same command continues"]
            raise
        accuracy, seconds = read_predictions(training.file).correct.mean(), time.perf_counter() - started
        callbacks.log(
            f"training {number} of {len(missing)}: draw {training.draw + 1}, {training.num_images:,} images: "
            f"accuracy {accuracy:.4f} in {seconds:.1f} s"
        )
        release_memory()
    shutil.rmtree(runs, ignore_errors=True)


def _announcement(trainings: Sequence[_Training], missing: Sequence[_Training]) -> str:
    most, total = (rule(training.num_images for training in part) for rule, part in ((max, trainings), (sum, missing)))
    finished = f"; {len(trainings) - len(missing)} are finished already" if len(missing) < len(trainings) else ""
    words = f"{total:,} images in total, {total / most:.1f} times all {most:,}"
    return f"{pluralize(len(missing), 'run')} with {words}{finished}"


def _warnings(callbacks: TrainCallbacks) -> Any:
    """Return a function that logs only warnings: the other messages of each training are the same."""
    return lambda line: callbacks.log(line) if line.startswith("warning") else None


def _train(training: _Training, directories: Directories, callbacks: TrainCallbacks, shared: SharedSetup) -> None:
    run = directories.runs / str(training.config.name)
    resume = run if (run / "config.yaml").is_file() else None
    write_text(training.manifest.path, manifest_text(training.manifest))
    (outcome,) = train_together([TrainJob(training.config, directories, callbacks, resume)], shared)
    if isinstance(outcome, Exception):
        raise outcome
    if not (run / "predictions-val.csv").is_file():
        raise UsageError(
            f"the training on {training.num_images:,} images diverged", "use a lower learning rate: --set optim.lr=1e-4"
        )
    os.replace(run / "predictions-val.csv", training.file)
    shutil.rmtree(run)
