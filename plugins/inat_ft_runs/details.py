"""The facts of one run, for people and as JSON."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

from inat_ft.cli import render
from inat_ft.config import RunConfig
from inat_ft.records import MetricValue
from inat_ft.tables import Table
from inat_ft.text import format_bytes
from inat_ft_runs.folder import RunEntry

_IGNORED = ("name", "data.root", "track", "compute")


def changed_settings(run: RunEntry) -> dict[str, Any]:
    """Return the settings whose values are not the defaults, by their dotted keys."""
    defaults = dict(_flat(RunConfig().model_dump(mode="json")))
    ours = dict(_flat(run.config))
    ignored = [key for key in ours if any(key == each or key.startswith(f"{each}.") for each in _IGNORED)]
    return {key: value for key, value in ours.items() if key not in ignored and value != defaults.get(key) is not value}


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def metrics(run: RunEntry) -> list[tuple[str, str, int, MetricValue]]:
    """Return the metrics of each evaluation: subset, name, number of images, and value."""
    found = [run.record.val, run.record.test] if run.record else []
    return [(e.subset, name, e.num_images, value) for e in found if e for name, value in e.metrics.items()]


def next_command(run: RunEntry) -> str:
    """Return the command that completes, evaluates or repeats the run."""
    place = shlex.quote(run.directory.as_posix())
    if run.state == "complete":
        evaluated = run.record is not None and run.record.test is not None
        return f"inat-ft train --config {place}/config.yaml" if evaluated else f"inat-ft eval {place}"
    return "" if run.state in ("running", "damaged") else f"inat-ft train --resume {place}"


def files(run: RunEntry) -> dict[str, int]:
    """Return the size of each file of the run, by its path in the run's folder."""
    inside = sorted(file for file in run.directory.rglob("*") if file.is_file() and file.name != ".lock")
    return {file.relative_to(run.directory).as_posix(): file.stat().st_size for file in inside}


def as_dict(run: RunEntry) -> dict[str, Any]:
    """Return all facts as `inat-ft runs show --json` prints them."""
    return {
        "name": run.name,
        "directory": run.directory.as_posix(),
        "state": run.state,
        "problem": run.problem or None,
        "created": run.created,
        "settings": changed_settings(run),
        "history": [epoch.model_dump(mode="json") for epoch in run.history],
        "val_accuracy": run.val_accuracy,
        "record": run.record and json.loads(run.record.model_dump_json()),
        "files": files(run),
        "next": next_command(run) or None,
    }


def print_details(run: RunEntry) -> None:
    """Print all facts."""
    render.echo(f"run:      {run.directory}")
    render.echo(f"state:    {run.state}{f': {run.problem}' if run.problem else ''}")
    render.echo(f"created:  {run.created or 'unknown'}")
    for line in _results(run):
        render.echo(line)
    settings = changed_settings(run)
    render.echo(f"settings: {', '.join(f'{key}={value}' for key, value in settings.items()) or 'defaults'}")
    if run.history:
        columns = {
            "epoch": "d",
            "train loss": ".4f",
            "train acc": ".4f",
            "val loss": ".4f",
            "val acc": ".4f",
            "s": ".1f",
        }
        names = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
        render.table(Table(columns, [[getattr(epoch, name) for name in names] for epoch in run.history]))
    if rows := metrics(run):
        cells = [(subset, name, value.value, value.low, value.high) for subset, name, _, value in rows]
        render.table(Table({"subset": "", "metric": "", "value": ".4f", "low": ".4f", "high": ".4f"}, cells))
    render.table(Table({"file": "", "size": ">"}, [(name, format_bytes(size)) for name, size in files(run).items()]))
    if command := next_command(run):
        render.info(f"next: {command}")


def _results(run: RunEntry) -> Iterator[str]:
    if run.val_accuracy is not None and run.best is not None:
        yield f"best:     epoch {run.best.epoch} of {len(run.history)}, validation accuracy {run.val_accuracy:.4f}"
    record = run.record
    if record is None:
        return
    if record.test_accuracy is not None:
        yield f"test:     accuracy {record.test_accuracy:.4f} on {record.num_test or 0:,} images"
    if record.split:
        counts = ", ".join(f"{number:,} {subset}" for subset, number in record.split.counts.items())
        manifest = os.path.normpath(run.directory / record.split.manifest)
        yield f"data:     {manifest}: {counts}; {len(record.classes):,} classes"
    if record.parameters:
        yield f"network:  {record.parameters.total:,} parameters, {record.parameters.trained:,} of them trained"
    for note in record.notes:
        yield f"note:     {note}"
