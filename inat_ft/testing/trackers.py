"""The conformance check of a tracker plugin."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from inat_ft.config import RunConfig
from inat_ft.records import Epoch, RunRecord
from inat_ft.tracking.base import Tracker


def check_tracker(tracker: Tracker, directory: Path) -> None:
    """Check that a tracker logs a run that finishes, one that fails, and one that is resumed after an epoch.

    The tracker needs what it needs in use, such as a server. directory: an empty folder for the runs. Raises what the tracker
    raises, and AssertionError when it prints to stdout, which is reserved for results, or `finish` does not return a string.
    """
    epochs = [
        Epoch(epoch=1, train_loss=1.0, train_accuracy=0.5, val_loss=1.1, val_accuracy=0.4, lr=1e-3, seconds=2.0),
        Epoch(epoch=2, train_loss=0.5, train_accuracy=0.8, val_loss=None, val_accuracy=0.6, lr=1e-3, seconds=2.0),
    ]
    _run(tracker, directory, "complete", epochs, 0, True)
    _run(tracker, directory, "failed", epochs[:1], 0, False)
    _run(tracker, directory, "failed", epochs, 1, True)


def _run(tracker: Tracker, directory: Path, name: str, epochs: list[Epoch], num_done: int, complete: bool) -> None:
    tracker = type(tracker)(**tracker.model_dump())  # without the private state of the run before
    run = directory / name
    run.mkdir(exist_ok=True)
    best = len(epochs)
    record = RunRecord(name=name, history=epochs, best_epoch=best, val_accuracy=0.6, seconds={"total": 4.0})
    with redirect_stdout(StringIO()) as printed:
        tracker.check()
        tracker.start(RunConfig(), name, run, epochs[:num_done])
        for epoch in epochs[num_done:]:
            tracker.log(epoch)
        line = tracker.finish(record if complete else None)
    assert isinstance(line, str), f"finish() returned {line!r}, not a string"
    assert not printed.getvalue(), f"the tracker printed to stdout: {printed.getvalue()!r}"
