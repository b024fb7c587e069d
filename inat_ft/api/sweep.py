"""Search for the best settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_ft.api.config import as_overrides, cache_directory
from inat_ft.api.run import Run
from inat_ft.data.manifest import find_manifest
from inat_ft.errors import InatFtError, UsageError
from inat_ft.progress import Log, ignore_log
from inat_ft.registry import SWEEP_BACKENDS, plugin_errors
from inat_ft.setup import TrainCallbacks
from inat_ft.sweeps import folder
from inat_ft.sweeps.attempts import Trial, TrialState
from inat_ft.sweeps.base import SweepState, load_backend
from inat_ft.sweeps.defaults import BUILT_IN
from inat_ft.sweeps.parsing import read_spec
from inat_ft.sweeps.preflight import check_models, require_split
from inat_ft.sweeps.selection import Selection, choose
from inat_ft.sweeps.study import Sweep
from inat_ft.sweeps.worker import training_objective
from inat_ft.tables import Column, Table


@dataclass(frozen=True)
class SweepResult:
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
        candidates = self.selection.candidates
        names = list(dict.fromkeys(name for candidate in candidates for name in candidate.trial.params))
        columns = [Column("trial", right=True), Column(self.sweep.spec.metric.name, ".4f", right=True)]
        columns += [Column("compared with the best"), Column("p (Holm)", ".2g", True), Column("seconds", ".1f", True)]
        rows = [
            (
                c.trial.number,
                c.trial.value,
                c.standing.value,
                c.p,
                c.cost,
                *(c.trial.params.get(name) for name in names),
            )
            for c in candidates
        ]
        return Table([*columns, *(Column(name) for name in names)], rows, f"sweep {self.id}")

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


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
        cache_dir: folder of the caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        callbacks: functions that receive messages, progress and epochs of each training.
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
    scheduler = load_backend(backend)
    if scheduler.schedules_here and parsed.num_trials is None and count is None:
        raise UsageError("nothing limits this sweep", "set run_cap in the sweep, or pass count")
    check_models(parsed)
    if scheduler.schedules_here:
        require_split(parsed)
    with plugin_errors(SWEEP_BACKENDS, type(scheduler), "create()"):
        address = scheduler.create(parsed, parsed.project, parsed.entity)
    id = name or (address.rsplit("/", 1)[-1] if address else folder.new_id())
    created = folder.create(parsed, Path(sweeps_dir), id, seed, None, backend, address)
    if "data.split" not in dict(fixed) and "data.split" not in dict(parsed.overrides({})):
        created.note("split", find_manifest().as_posix())
    listener = callbacks or TrainCallbacks()
    objective = training_objective(parsed.metric.name, cache_directory(cache_dir), lambda config: listener)
    with plugin_errors(SWEEP_BACKENDS, type(scheduler), "run()"):
        state, reason = created.backend.run(created, objective, count, log)
    return _result(created, state, reason)


def _result(created: Sweep, state: SweepState, reason: str) -> SweepResult:
    hint = f"correct the cause, then: {created.next_command('run')}"
    if state is SweepState.FAILED:
        raise InatFtError(f"the sweep has stopped: {reason}", hint)
    failed = [trial for trial in created.trials() if trial.state is TrialState.FAILED]
    if failed and not created.best():
        raise InatFtError(f"no trial of sweep {created.id} has succeeded; the last one: {failed[-1].reason}", hint)
    return SweepResult(created, state, reason, choose(created))
