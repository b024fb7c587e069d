"""Fine-tune a classifier."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from inat_ft.config import RunConfig
from inat_ft.errors import UsageError
from inat_ft.paths import cache_folder, is_cross_validation
from inat_ft.records import Epoch, RunRecord, read_record
from inat_ft.registry import BACKBONES, FEATURES, OPTIMIZERS, STRATEGIES, Plugin, get, plugins, split_backbone
from inat_ft.settings import Override, expand_key, expand_user, load_config
from inat_ft.tables import Table, Tabular

if TYPE_CHECKING:
    from inat_ft_folds.result import CrossValidation

    from inat_ft.setup import TrainCallbacks

RunLike = str | os.PathLike[str]
"""A Run, a run folder, or the path of its record.json."""
_MOVABLE = {"data.split", "data.root"}  # keys that can change when a run is resumed, besides those of trackers


@dataclass(frozen=True)
class Run(Tabular):
    """A trained classifier: its record and its folder.

        run = inat_ft.Run.open("runs/resnet50-head-1")
        run.val_accuracy

    Functions that take the path of a run also take a Run.
    """

    record: RunRecord
    directory: Path

    @classmethod
    def open(cls, path: RunLike) -> Run:
        """Open a run folder or its record.json. Raises UsageError if it is missing, RecordError if it is damaged."""
        record, file = read_record(Path(path))
        return cls(record, file.parent)

    def __fspath__(self) -> str:
        return os.fspath(self.directory)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.record.name

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on the validation images in the best epoch, 0 to 1."""
        return self.record.val_accuracy

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test images, 0 to 1; None if the run has not been evaluated."""
        return self.record.test_accuracy

    @property
    def history(self) -> Sequence[Epoch]:
        """Losses, accuracies, learning rate and seconds of each epoch."""
        return self.record.history

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the logits."""
        return self.record.classes

    @property
    def table(self) -> Table:
        """The history as a table, one row per epoch."""
        scores = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), ".4f")
        columns = {"epoch": "d", **scores, "lr": ".3g", "seconds": ".1f"}
        return Table(columns, [[getattr(epoch, name) for name in columns] for epoch in self.history], self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the record and the folder as `inat-ft train --json` prints them."""
        return {**self.record.model_dump(mode="json"), "directory": self.directory.as_posix()}

    def __str__(self) -> str:
        value = "unknown" if self.val_accuracy is None else f"{self.val_accuracy:.4f}"
        return f"{self.name}: validation accuracy {value}, {self.directory}"


@overload
def train(
    config: str | os.PathLike[str] | RunConfig | None = None,
    *,
    folds: None = None,
    settings: Mapping[str, Any] | None = None,
    tracker: str | Sequence[str] = (),
    resume: RunLike | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    cache_dir: str | os.PathLike[str] | None = None,
    callbacks: TrainCallbacks | None = None,
    **options: Any,
) -> Run: ...
@overload
def train(
    config: str | os.PathLike[str] | RunConfig | None = None, *, folds: int, **options: Any
) -> CrossValidation: ...
def train(
    config: str | os.PathLike[str] | RunConfig | None = None,
    *,
    folds: int | None = None,
    settings: Mapping[str, Any] | None = None,
    tracker: str | Sequence[str] = (),
    resume: RunLike | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    cache_dir: str | os.PathLike[str] | None = None,
    callbacks: TrainCallbacks | None = None,
    **options: Any,
) -> Run | CrossValidation:
    """Fine-tune a classifier and write a run: weights, record, and predictions on the validation images.

        run = inat_ft.train(split="splits/digits.csv", mode="head", dropout=0.3, epochs=5)
        run.val_accuracy

    Args:
        config: a YAML file of settings, or a RunConfig. Options and settings override it.
        folds: number of folds of a cross-validation over the training and validation images. Each fold is predicted by a
            classifier trained on the others. Returns a CrossValidation. Default: train one classifier.
        settings: any further keys, by their dotted names, such as `{"optim.momentum": 0.8, "strategy.rank": 8}`.
        tracker: trackers that log the run, such as `wandb`.
        resume: a run to continue from its last epoch; a finished run is returned as it is.
        runs_dir: folder in which the run folder is created.
        cache_dir: folder for caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        callbacks: functions that receive messages, progress and epochs.
        **options: the options of `inat-ft train` with underscores, such as `mode`, `backbone`, `weights`, `epochs`,
            `batch_size`, `lr`, `seed` and `name`. None stands for the default.

    Raises:
        ConfigError: an option is unknown or out of range; the message suggests the nearest one.
        UsageError: there is no split, the name is in use, or the run to resume is missing.
        DataError: an image is missing or has changed since the split.
        WeightsError: pretrained weights cannot be loaded.
        BusyError: another process is using the run.
        PluginError: a plugin cannot be imported or fails.
    """
    from inat_ft.setup import Directories, TrainCallbacks
    from inat_ft.training import train as train_one

    names = tracker.split(",") if isinstance(tracker, str) else tracker
    resolved, directory = resolve_config(
        config,
        as_overrides(options, {f"track.{name}": {} for name in names}, settings),
        None if resume is None else Path(resume),
        Path(runs_dir),
    )
    callbacks = callbacks or TrainCallbacks()
    for plugin in shadowed_plugins(resolved):
        callbacks.log(f"warning: {plugin} is not used: inat-ft or torchvision has the same name")
    directories = Directories(Path(runs_dir), cache_folder(cache_dir))
    if folds is not None:
        found: CrossValidation = get(FEATURES, "folds").load()(
            resolved, directories, folds, lambda _: callbacks, directory
        )
        return found
    if directory and is_cross_validation(directory):
        raise UsageError(f"{directory} is a cross-validation", "resume it with its number of folds: folds=N")
    return Run(*train_one(resolved, directories, callbacks, directory))


def as_overrides(*mappings: Mapping[str, Any] | None) -> list[Override]:
    """Return the settings as overrides; None stands for the default.

    A key is a name such as `epochs` or a dotted key such as `optim.momentum`. Raises ConfigError for an unknown key.
    """
    pairs = [pair for mapping in mappings if mapping for pair in mapping.items()]
    return [
        (expand_key(key), os.fspath(value) if isinstance(value, os.PathLike) else value)
        for key, value in pairs
        if value is not None
    ]


def resolve_config(
    config: str | os.PathLike[str] | RunConfig | None,
    overrides: Sequence[Override],
    resume: Path | None,
    runs_dir: Path,
) -> tuple[RunConfig, Path | None]:
    """Return the configuration and, if a run is resumed, its folder. Raises UsageError or PluginError."""
    given = dict(overrides)
    if resume is not None:
        if config is not None or {key for key in given if not key.startswith("track.")} - _MOVABLE:
            problem = "--resume takes its settings from the run, except --split, --root and those of trackers"
            raise UsageError(problem, f"run: inat-ft train --resume {resume}")
        resume = _run_to_resume(resume, runs_dir)
        config = resume / "config.yaml"
    resolved = config if isinstance(config, RunConfig) and not overrides else load_config(config, overrides)
    if resume is not None:
        _require_split(resolved, resume)
    if "optim.alpha" in given and resolved.optim.average != "wise-ft":
        raise UsageError("--alpha requires --average wise-ft", "add --average wise-ft, or remove --alpha")
    if "data.views" in given and resolved.data.views and resolved.data.augment != "standard":
        raise UsageError("--views requires --augment standard", "add --augment standard, or remove --views")
    file = None if resume or config is None or isinstance(config, RunConfig) else Path(config)
    if file and "name" not in given and file.resolve().parent.name == resolved.name:
        resolved = resolved.model_copy(update={"name": None})  # the settings of a run are reused, its name is not
    return resolved, resume


def _run_to_resume(run: Path, runs_dir: Path) -> Path:
    found = next((folder for folder in (run, runs_dir / run) if (folder / "config.yaml").is_file()), None)
    if found is None:
        problem = f"cannot resume {run}: it has no config.yaml"
        raise UsageError(problem, f"give the folder of a run, or the name of a run in {runs_dir} (--runs-dir)")
    return found


def _require_split(config: RunConfig, run: Path) -> None:
    split = config.data.split
    if split and not expand_user(split).is_file() and not (run / "record.json").exists():
        problem = f"the manifest of {run} is missing: {split}"
        raise UsageError(problem, f"if it was moved, run: inat-ft train --resume {run} --split FILE")


def shadowed_plugins(config: RunConfig) -> list[Plugin]:
    """Return the unused plugins of other packages that have the name of the backbone, strategy or optimizer."""
    names = {BACKBONES: config.model.backbone, STRATEGIES: config.strategy.name, OPTIMIZERS: config.optim.optimizer}
    used = [get(group, split_backbone(name)[0] if group == BACKBONES else name) for group, name in names.items()]
    claims = [plugin for group, name in names.items() for plugin in plugins(group).get(name, [])]
    return [plugin for plugin in claims if plugin not in used]
