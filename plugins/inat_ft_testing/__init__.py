"""Conformance checks for plugin authors, one for each group, and small networks and images to test with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inat_ft_sweeps.attempts import TrialState
from inat_ft_sweeps.base import SweepBackend, SweepStatus, TrialJob
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.parsing import parse_spec

from inat_ft.config import RunConfig
from inat_ft.data.sources.base import ImageList, ReadOptions, Source
from inat_ft.errors import InatFtError
from inat_ft.metrics.base import Metric, Predictions, contributions_of, measure
from inat_ft.records import Epoch, RunRecord
from inat_ft.registry import SOURCES, call_plugin, plugin_label
from inat_ft.tracking import Tracker
from inat_ft_testing.networks import (
    SyntheticData,
    check_backbone,
    check_exporter,
    check_optimizer,
    check_strategy,
    synthetic_images,
    tiny_net,
)

__all__ = [
    "SyntheticData",
    "check_backbone",
    "check_exporter",
    "check_metric",
    "check_optimizer",
    "check_source",
    "check_strategy",
    "check_sweep_backend",
    "check_tracker",
    "synthetic_images",
    "tiny_net",
]

_SPEC: Mapping[str, Any] = {
    "method": "random",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "run_cap": 5,
    "parameters": {
        "mode": {"values": ["head", "partial"]},
        "unfreeze_from": {"values": ["layer3", "layer4"]},  # applies to mode partial only
        "lr": {"values": [1e-2, 1e-3, 1e-4]},
    },
}


def check_metric(metric: Metric, images: int = 150) -> None:
    """Check that a metric keeps its contract, and that its 95% interval covers the value of a large population.

    images: in each of 40 simulated test sets. Raises AssertionError or PluginError.
    """
    rng = np.random.default_rng(0)
    p = _simulate(rng, images, metric)
    value = metric.value(p)
    least, most = metric.bounds
    assert least <= value <= most, f"the value {value} is outside the bounds {least} to {most}"
    shuffled = metric.value(p.take(rng.permutation(images)))
    assert np.isclose(shuffled, value), "the value depends on the order of the images"
    assert np.isclose(contributions_of(metric, p).value, value), "the mean of the contributions is not the value"
    one_class = p.take(np.flatnonzero(p.true == 0))
    assert np.isfinite(metric.value(one_class)), "the value of images of a single class is not finite"
    certain = np.eye(len(p.classes))[p.true] if metric.needs_probabilities else None
    perfect = metric.value(Predictions(p.classes, (), (), p.true, p.true, certain))
    better = perfect >= value if metric.higher_is_better else perfect <= value
    assert better, "perfect predictions have a worse value: check higher_is_better"
    truth = metric.value(_simulate(rng, 100_000, metric))
    covered = 0
    for _ in range(40):
        found = measure(metric, _simulate(rng, images, metric))
        assert found.low is not None and found.high is not None, "interval() returns no interval"
        assert found.low <= found.value <= found.high, f"the value {found.value} is outside its own interval"
        covered += found.low <= truth <= found.high
    assert covered >= 32, f"{covered} of 40 intervals cover the value of the population"


def _simulate(rng: np.random.Generator, number: int, metric: Metric) -> Predictions:
    """Return predictions of four classes, about 70 % correct, with calibrated probabilities if the metric needs them."""
    true = rng.integers(0, 4, number)
    p = np.exp(2.0 * (rng.normal(0, 1, (number, 4)) + 2.0 * np.eye(4)[true]))
    p /= p.sum(1, keepdims=True)
    return Predictions(tuple("abcd"), (), (), true, p.argmax(1), p if metric.needs_probabilities else None)


def check_source(source: Source, location: Path) -> ImageList:
    """Check that a data source fulfils its contract, and return the images of a location that it can read.

    Raises AssertionError or PluginError if it does not: it recognizes the location, and neither an empty folder nor a file
    without content; it lists images that exist, each once, in the same way each time; an image cannot be both listed and left
    out.
    """
    name = plugin_label(SOURCES, type(source))
    assert call_plugin(source.recognizes, location), f"{name} does not recognize {location}"
    with TemporaryDirectory() as temporary:
        other = Path(temporary) / "unknown.xyz"
        other.touch()
        assert not call_plugin(source.recognizes, other), f"{name} recognizes an empty file with the suffix .xyz"
    images, again = (call_plugin(source.read, location, ReadOptions()) for _ in range(2))
    assert isinstance(images, ImageList), f"read() must return an ImageList, not {images!r}"
    assert images.layout, "read() must set a layout, which the manifest records"
    assert images.rows, f"read() lists no images of {location}"
    assert images.root.is_dir(), f"the root of the images, {images.root}, is not a folder"
    assert not images.listing or (images.root / images.listing).samefile(location), (
        f"the listing must be the file name of {location}, not {images.listing!r}"
    )
    assert (images.rows, images.left_out) == (again.rows, again.left_out), "read() lists different images each time"
    paths = images.paths
    assert len(set(paths)) == len(paths), "read() lists an image twice"
    assert not set(paths) & {left.path for left in images.left_out}, "an image is both listed and left out"
    missing = [path for path in paths if not (images.root / path).is_file()]
    assert not missing, f"read() lists files that do not exist, such as {missing[0]}"
    assert {row.label for row in images.rows} <= images.classes, "classes must contain every label"
    return images


def check_sweep_backend(backend: SweepBackend, name: str = "local", spec: Mapping[str, Any] = _SPEC) -> None:
    """Run a small sweep with a backend, without training, and check its contract.

    name: the name under which the backend is registered. spec: the sweep, as in a sweep file. Raises AssertionError or
    PluginError naming what is wrong.
    """
    parsed = parse_spec(dict(spec))
    failed: list[str] = []

    def objective(job: TrialJob) -> float:
        if not failed:
            failed.append(job.name)
            raise InatFtError("the first trial fails")
        return float(dict(job.overrides).get("optim.lr", 0.5))

    with TemporaryDirectory() as folder:
        sweep = create(parsed, Path(folder), "check", backend=name, address=backend.create(parsed, None, None))
        sweep.backend = backend
        status = backend.run(sweep, objective, None, lambda line: None)
        assert isinstance(status, SweepStatus), f"run() returned {status!r}, not a SweepStatus"
        trials, limit = sweep.trials(), parsed.num_trials
        assert trials, "run() recorded no trial"
        assert all(trial.state is not TrialState.RUNNING for trial in trials), "run() left a running trial"
        assert any(trial.value is not None for trial in trials), "run() recorded no value"
        assert limit is None or len(trials) <= limit, f"{len(trials)} trials for a limit of {limit}"
        if backend.schedules_here:
            before = copy.deepcopy(trials)
            first, second = (backend.ask(parsed, trials, 0) for _ in range(2))
            assert first == second, f"ask() gave two answers to the same question: {first} and {second}"
            assert trials == before, "ask() changed the trials"
        backend.stop(sweep)


def check_tracker(tracker: Tracker, directory: Path) -> None:
    """Check that a tracker logs a run that finishes, one that fails, and one that is resumed after an epoch.

    The tracker needs what it needs in use, such as a server. directory: an empty folder for the runs. Raises what the tracker
    raises, and AssertionError when it prints to stdout, which is reserved for results, or `finish` does not return a string.
    """
    epochs = [
        Epoch(epoch=1, train_loss=1.0, train_accuracy=0.5, val_loss=1.1, val_accuracy=0.4, lr=1e-3, seconds=2.0),
        Epoch(epoch=2, train_loss=0.5, train_accuracy=0.8, val_loss=None, val_accuracy=0.6, lr=1e-3, seconds=2.0),
    ]
    for name, logged, num_done, completes in (
        ("complete", epochs, 0, True),
        ("failed", epochs[:1], 0, False),
        ("failed", epochs, 1, True),
    ):
        tracker = type(tracker)(**tracker.model_dump())  # without the private state of the run before
        (run := directory / name).mkdir(exist_ok=True)
        best = len(logged)
        record = RunRecord(name=name, history=logged, best_epoch=best, val_accuracy=0.6, seconds={"total": 4.0})
        with redirect_stdout(StringIO()) as printed:
            tracker.check()
            tracker.start(RunConfig(), name, run, logged[:num_done])
            for epoch in logged[num_done:]:
                tracker.log(epoch)
            line = tracker.finish(record if completes else None)
        assert isinstance(line, str), f"finish() returned {line!r}, not a string"
        assert not printed.getvalue(), f"the tracker printed to stdout: {printed.getvalue()!r}"
