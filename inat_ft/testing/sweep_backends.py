"""A check for authors of sweep backends."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inat_ft.errors import InatFtError
from inat_ft.sweeps.attempts import TrialState
from inat_ft.sweeps.base import SweepBackend, SweepStatus, TrialJob
from inat_ft.sweeps.folder import create
from inat_ft.sweeps.parsing import parse_spec

SPEC: dict[str, Any] = {
    "method": "random",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "run_cap": 5,
    "parameters": {
        "mode": {"values": ["head", "partial"]},
        "unfreeze_from": {"values": ["layer3", "layer4"]},
        "lr": {"values": [1e-2, 1e-3, 1e-4]},
    },
}
"""Nine points; `unfreeze_from` applies to mode partial only."""


def check_sweep_backend(backend: SweepBackend, name: str = "local", spec: dict[str, Any] = SPEC) -> None:
    """Run a small sweep with a backend, without training, and check its contract.

    name: the name under which the backend is registered. spec: the sweep, as in a sweep file. Raises AssertionError or
    PluginError naming what is wrong.
    """
    parsed = parse_spec(spec)
    failed: list[str] = []

    def objective(job: TrialJob) -> float:
        if not failed:
            failed.append(job.name)
            raise InatFtError("the first trial fails")
        return float(dict(job.overrides).get("optim.lr", 0.5))

    with TemporaryDirectory() as folder:
        address = backend.create(parsed, None, None)
        sweep = create(parsed, Path(folder), "check", backend=name, address=address)
        sweep.backend = backend
        status = backend.run(sweep, objective, None, lambda line: None)
        assert isinstance(status, SweepStatus), f"run() returned {status!r}, not a SweepStatus"
        trials = sweep.trials()
        assert trials, "run() recorded no trial"
        assert all(trial.state is not TrialState.RUNNING for trial in trials), "run() left a running trial"
        assert any(trial.value is not None for trial in trials), "run() recorded no value"
        limit = parsed.num_trials
        assert limit is None or len(trials) <= limit, f"{len(trials)} trials for a limit of {limit}"
        if backend.schedules_here:
            before = copy.deepcopy(trials)
            first, second = (backend.ask(parsed, trials, 0) for _ in range(2))
            assert first == second, f"ask() gave two answers to the same question: {first} and {second}"
            assert trials == before, "ask() changed the trials"
        backend.stop(sweep)
