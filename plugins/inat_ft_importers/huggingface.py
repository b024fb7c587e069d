"""Records from the trainer_state.json of the Hugging Face Trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inat_ft.errors import RecordError
from inat_ft.records import RunRecord
from inat_ft_importers.history import Object, read_objects, renamed, with_history

_TRAINER_NAMES = {
    "epoch": ("epoch",),
    "train_loss": ("loss",),
    "val_loss": ("eval_loss",),
    "val_accuracy": ("eval_accuracy",),
    "test_accuracy": ("test_accuracy",),
}


def from_trainer_state(file: Path, name: str) -> RunRecord:
    """Return a record from a Hugging Face trainer_state.json. Raises RecordError when it is not one."""
    objects = read_objects(file)
    log = objects[0].get("log_history") if len(objects) == 1 else None
    if not isinstance(log, list):
        raise RecordError(
            f"{file} is not a trainer_state.json: it has no log_history", "use the one in a checkpoint folder"
        )
    history: dict[int, Object] = {}
    test = None
    for entry in _during_training(log):
        values = renamed(entry, _TRAINER_NAMES)
        test = values.pop("test_accuracy", test)
        number = values.pop("epoch", None)
        if number is None or (number <= 0 and "loss" not in entry):
            continue  # an evaluation before the first step does not belong to an epoch
        epoch = max(1, math.ceil(number))
        history.setdefault(epoch, {"epoch": epoch}).update(values)
    return with_history(file, name, history, test)


def _during_training(log: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a Trainer log without evaluations that ran after the training.

    `train()` ends with an entry that has `train_runtime`. A later `evaluate()` repeats the last epoch's number but measures
    the final weights, often those of the best epoch, or another data set. A resumed training logs `loss` again.
    """
    finished = False
    for entry in log:
        if not isinstance(entry, Mapping):
            continue
        if "loss" in entry:
            finished = False
        yield {key: value for key, value in entry.items() if not (finished and str(key).startswith("eval_"))}
        finished = finished or "train_runtime" in entry
