"""Fine-tune a classifier."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inat_ft.api.config import as_overrides, cache_directory, resolve_config
from inat_ft.api.run import Run, RunLike
from inat_ft.config import RunConfig, shadowed_plugins
from inat_ft.setup import Directories, TrainCallbacks
from inat_ft.training import train as _train


def train(
    config: str | os.PathLike[str] | RunConfig | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    tracker: str | Sequence[str] = (),
    resume: RunLike | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    cache_dir: str | os.PathLike[str] | None = None,
    callbacks: TrainCallbacks | None = None,
    **options: Any,
) -> Run:
    """Fine-tune a classifier and write a run: weights, record, and predictions on the validation images.

        run = inat_ft.train(split="splits/digits.csv", mode="head", dropout=0.3, epochs=5)
        run.val_accuracy

    Args:
        config: a YAML file of settings, or a RunConfig. Options and settings override it.
        settings: any further keys, by their dotted names, such as `{"optim.momentum": 0.8, "strategy.rank": 8}`.
        tracker: trackers that log the run, such as `wandb`.
        resume: a run to continue from its last epoch; a finished run is returned as it is.
        runs_dir: folder in which the run directory is created.
        cache_dir: folder of the caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        callbacks: functions that receive messages, progress and epochs.
        **options: the options of `inat-ft train` with underscores, such as `mode`, `backbone`, `weights`, `epochs`,
            `batch_size`, `lr`, `seed` and `name`. None stands for the default.

    Raises:
        ConfigError: an option is unknown or out of range; the message suggests the nearest one.
        UsageError: there is no split, the name is in use, or the run to resume is missing.
        DataError: an image is missing or has changed since the split.
        WeightsError: pretrained weights cannot be loaded.
        BusyError: another process is training the run.
        PluginError: a plugin cannot be imported or fails.
    """
    names = [tracker] if isinstance(tracker, str) else tracker
    resolved, directory = resolve_config(
        config if config is None or isinstance(config, RunConfig) else Path(config),
        as_overrides(options, {f"track.{name}": {} for name in names}, settings),
        None if resume is None else Path(resume),
        Path(runs_dir),
    )
    callbacks = callbacks or TrainCallbacks()
    for plugin in shadowed_plugins(resolved):
        callbacks.log(f"warning: {plugin} is not used: inat-ft or torchvision has the same name")
    return train_config(resolved, directory, Directories(Path(runs_dir), cache_directory(cache_dir)), callbacks)


def train_config(config: RunConfig, resume: Path | None, directories: Directories, callbacks: TrainCallbacks) -> Run:
    """Train a resolved configuration; `resume` is the directory of the run that it belongs to, or None."""
    return Run(*_train(config, directories, callbacks, resume))
