"""Sweeps whose trials have known results: nothing is trained, but each run has its record and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from inat_ft_sweeps.base import TrialJob
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.study import Sweep
from inat_ft_sweeps.worker import run_worker

from inat_ft.records import Epoch, RunRecord, SplitInfo, write_record
from tests.tune.world import write_correct

SPLIT = SplitInfo(manifest="s.csv", fingerprint="f", counts={"train": 100, "val": 100, "test": 100})


def write_run(job: TrialJob, correct: int, seconds: float = 1.0) -> float:
    """Write a run with so many of 100 validation images correct, and one epoch of some seconds; return its accuracy."""
    history = [Epoch(epoch=1, train_loss=1.0, val_loss=1.0, val_accuracy=correct / 100, seconds=seconds)]
    record = RunRecord(name=job.name, history=history, best_epoch=1, val_accuracy=correct / 100, split=SPLIT)
    write_correct(job.runs / job.name, correct)
    write_record(record, job.runs / job.name / "record.json")
    return correct / 100


def sweep_over(values: Sequence[float], id: str = "s", **more: object) -> Sweep:
    """Create a sweep in the folder `sweeps` that tries some values of dropout in their order."""
    spec: Mapping[str, object] = {"method": "grid", "parameters": {"dropout": {"values": list(values)}}, **more}
    return create(parse_spec(spec), Path("sweeps"), id)


def run(sweep: Sweep, objective: Callable[[TrialJob, float], float], count: int | None = None) -> None:
    """Run trials: objective gets the job and its dropout."""
    run_worker(sweep, lambda job: objective(job, dict(job.overrides)["model.dropout"]), count, lambda line: None)
