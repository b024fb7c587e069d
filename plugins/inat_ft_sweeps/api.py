"""Search for the best settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_ft.api.train import Run, as_overrides
from inat_ft.errors import UsageError
from inat_ft.paths import cache_folder
from inat_ft.progress import Log, ignore_log
from inat_ft.registry import FEATURES, call_plugin, get
from inat_ft.setup import TrainCallbacks
from inat_ft.tables import Table, Tabular
from inat_ft_sweeps.attempts import Trial
from inat_ft_sweeps.base import SweepState, load_backend
from inat_ft_sweeps.folder import create_checked
from inat_ft_sweeps.objective import TrainingObjective
from inat_ft_sweeps.parsing import BUILT_IN, read_spec
from inat_ft_sweeps.selection import Selection, choose
from inat_ft_sweeps.study import Sweep


@dataclass(frozen=True)
class SweepResult(Tabular):
    """The trials of a sweep, and how they compare with the best one.

        result = inat_ft.sweep("sweep.yaml")
        result.best.params, result.run.directory

    `best` and `run` are those of the best trial.
    """

    sweep: Sweep
    state: SweepState
    """finished, stopped or waiting (for more trials)."""
    reason: str
    """Why the sweep is in this state."""
    selection: Selection

    @property
    def id(self) -> str:
        """ID of the sweep, which `inat-ft sweep` accepts."""
        return self.sweep.id

    @property
    def directory(self) -> Path:
        """Folder of the sweep."""
        return self.sweep.folder

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials by number, failed ones included."""
        return self.sweep.trials()

    @property
    def best(self) -> Trial:
        """The trial with the best value of the metric on the validation images, which is optimistically biased."""
        return self.selection.candidates[0].trial

    @property
    def run(self) -> Run:
        """The run of the best trial."""
        return Run.open(self.sweep.runs / self.best.run)

    @property
    def table(self) -> Table:
        """One row per complete trial, the best first."""
        columns = {"trial": "d", self.sweep.spec.metric.name: ".4f", "compared with the best": "", "p (Holm)": ".2g"}
        columns["seconds"] = ".1f"
        candidates = self.selection.candidates
        names = list(dict.fromkeys(name for candidate in candidates for name in candidate.trial.params))
        rows = [
            (c.trial.number, c.trial.value, c.standing.value, c.p, c.cost, *map(c.trial.params.get, names))
            for c in candidates
        ]
        return Table(columns | dict.fromkeys(names, ""), rows, f"sweep {self.id}")


def sweep(
    spec: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    count: int | None = None,
    name: str | None = None,
    backend: str = "local",
    seed: int = 0,
    sweeps_dir: str | os.PathLike[str] = "sweeps",
    cache_dir: str | os.PathLike[str] | None = None,
    callbacks: TrainCallbacks | None = None,
    log: Log = ignore_log,
    **options: Any,
) -> SweepResult:
    """Create a sweep, run its trials in this process, and return them.

        result = inat_ft.sweep(
            {"method": "grid", "parameters": {"lr": {"values": [1e-3, 1e-4]}, "dropout": {"values": [0.0, 0.3]}}},
            split="splits/digits.csv",
        )
        print(result)

    The trials are run one after the other. To use several processes, run `inat-ft sweep run ID` in several terminals.

    Args:
        spec: a sweep in W&B's format, as a mapping or a YAML file. Default: the built-in sweep.
        settings: values to fix for all trials, by their dotted names, such as `{"optim.momentum": 0.8}`.
        count: number of trials to run. Default: all.
        name: ID of the sweep. Default: eight random letters.
        backend: what decides the points: `local`, `wandb`, or the name of a plugin.
        seed: seed of the search.
        sweeps_dir: folder of the sweeps.
        cache_dir: folder for caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        callbacks: functions that receive messages, progress and epochs of each run.
        log: called with a line after each trial.
        **options: values to fix for all trials, by the options of `inat-ft train`, such as `split` and `epochs`.

    Raises:
        ConfigError: a parameter or value is invalid.
        UsageError: the name is in use, the split is missing, or nothing limits the number of trials.
        InatFtError: ten trials in a row have failed, or none has succeeded.
        PluginError: the backend cannot be imported or fails.
    """
    fixed = as_overrides(options, settings)
    if spec is None or isinstance(spec, Mapping):
        parsed = read_spec(None, fixed, BUILT_IN if spec is None else spec)
    else:
        parsed = read_spec(Path(spec), fixed)
    if load_backend(backend).schedules_here and parsed.num_trials is None and count is None:
        raise UsageError("nothing limits this sweep", "set run_cap in the sweep, or pass count")
    created = create_checked(parsed, Path(sweeps_dir), name, seed, backend=backend)
    created.pin_split()
    listener = callbacks or TrainCallbacks()
    objective = TrainingObjective(parsed.metric.name, cache_folder(cache_dir), lambda config: listener)
    status = call_plugin(created.backend.run, created, objective, count, log)
    created.require_success(status)
    return SweepResult(created, *status, choose(created))


@dataclass(frozen=True)
class TuneResult(Tabular):
    """The chosen run, the conclusion in one sentence, the HTML report, and what `tune --json` prints."""

    run: Run
    summary: str
    report: Path
    details: dict[str, Any]

    @property
    def table(self) -> Table:
        """One row per run, the best first."""
        columns = {"name": "", "stage": "", "settings": "", "epochs": "d", "val_accuracy": ".4f", "seconds": ".1f"}
        return Table(columns, [[row[name] for name in columns] for row in self.details["trials"]])


def tune(
    data: str | os.PathLike[str] | None = None,
    budget: str | float | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> TuneResult:
    """Choose and train a model in a given time, as `inat-ft tune` does.

        result = inat_ft.tune("photos", budget="30m", backbone="resnet18")

    Args:
        data: folder of images, or a manifest; None continues the search in the folder `out`.
        budget: time for everything, such as `90s`, `30m` or `1h30m`, or a number of seconds. Default: `30m`, or the budget
            of the search that continues.
        out: folder for the search and its report. Default: `tunes/NAME`.
        settings: values to fix for all runs, by their dotted names, such as `{"optim.momentum": 0.8}`.
        **options: `strategies`, `config`, `seed`, `runs_dir`, `cache_dir`, `log`, and those of `train`.

    Raises:
        UsageError: the data or an option cannot be used, or the budget is too short.
        DataError: an image is missing or has changed since the split.
    """
    checked = get(FEATURES, "arguments").load()(get(FEATURES, "tune").load())
    result: TuneResult = checked(data, budget, out=out, settings=settings, **options)
    return result
