"""Records of other programs: from predictions, a W&B export, or a Hugging Face trainer state."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inat_ft.errors import PluginError, RecordError, UsageError
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.evaluation.scores import confusion, score
from inat_ft.evaluation.tabular import read_csv, read_objects
from inat_ft.records import Epoch, Evaluation, RunRecord
from inat_ft.validation import format_validation_error

Object = dict[str, Any]

_WANDB_NAMES = {
    "epoch": ("epoch",),
    "train_loss": ("train_loss", "train/loss", "loss"),
    "train_accuracy": ("train_accuracy", "train/accuracy", "accuracy", "train_acc"),
    "val_loss": ("val_loss", "val/loss", "eval_loss"),
    "val_accuracy": ("val_accuracy", "val/accuracy", "val_acc", "eval_accuracy"),
    "test_accuracy": ("test_accuracy", "test/accuracy", "test_acc"),
}
_TRAINER_NAMES = {
    "epoch": ("epoch",),
    "train_loss": ("loss",),
    "val_loss": ("eval_loss",),
    "val_accuracy": ("eval_accuracy",),
    "test_accuracy": ("test_accuracy",),
}


def from_predictions(
    file: Path, name: str, out: Path, warn: Callable[[PluginError], None] = lambda error: None
) -> RunRecord:
    """Return a record that refers to a predictions CSV by its path relative to `out`.

    warn: called with the error of each metric plugin that failed and is left out. Raises RecordError.
    """
    predictions = read_predictions(file)
    scores = score(predictions)
    for error in scores.errors:
        warn(error)
    path = Path(os.path.relpath(file.resolve(), out.resolve().parent)).as_posix()
    test = Evaluation(
        subset="test",
        num_images=len(predictions),
        fingerprint="",
        metrics=scores.metrics,
        per_class=scores.per_class,
        confusion=confusion(predictions).tolist(),
        predictions=path,
    )
    return _record(
        name=name,
        test_accuracy=scores.metrics["accuracy"].value,
        num_test=len(predictions),
        classes=list(predictions.classes),
        test=test,
        predictions={"test": path},
    )


def from_wandb(file: Path, name: str, run: str | None = None) -> RunRecord:
    """Return a record from a W&B export: the history of a run as CSV or JSON, or its summary as JSON.

    run: name of the run, where the export has several. Raises UsageError when it is needed and missing, RecordError when
    there is neither a test accuracy nor a history of epochs.
    """
    if file.suffix.lower() == ".csv":
        header, lines = read_csv(file)
        rows = [dict(zip(header, line.cells, strict=False)) for line in lines]
    else:
        rows = _by_row(read_objects(file))
    found = [_renamed(row, _WANDB_NAMES) for row in _of_one_run(file, rows, run)]
    epochs = [values["epoch"] for values in found if "epoch" in values]
    history: dict[int, Object] = {}
    test = None
    for values in found:
        test = values.pop("test_accuracy", test)
        number = values.pop("epoch", None)
        if number is None and (epochs or not values.keys() & {"val_accuracy", "val_loss"}):
            continue  # a step, which does not end an epoch
        epoch = len(history) + 1 if number is None else int(number) + (1 if min(epochs) < 1 else 0)
        if values:
            history.setdefault(epoch, {"epoch": epoch}).update(values)
    return _with_history(file, name, history, test)


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
        values = _renamed(entry, _TRAINER_NAMES)
        test = values.pop("test_accuracy", test)
        number = values.pop("epoch", None)
        if number is None or (number <= 0 and "loss" not in entry):
            continue  # an evaluation before the first step does not belong to an epoch
        epoch = max(1, math.ceil(number))
        history.setdefault(epoch, {"epoch": epoch}).update(values)
    return _with_history(file, name, history, test)


def _by_row(objects: list[Object]) -> list[Object]:
    """Return a table that pandas wrote by columns as rows; other objects as they are."""
    columns = objects[0]
    if len(objects) > 1 or not columns or not all(isinstance(column, dict | list) for column in columns.values()):
        return objects
    values = [list(column.values()) if isinstance(column, dict) else column for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=False)]


def _of_one_run(file: Path, rows: list[Object], run: str | None) -> list[Object]:
    """Return the rows of one run of a chart, whose columns are `run - metric`, or of a table with one run per row."""
    charted = {key.rsplit(" - ", 1)[0] for row in rows for key in row if " - " in key}
    listed = [str(row["Name"]) for row in rows if "Name" in row and "_step" not in row]
    runs = sorted(charted or set(listed))
    if run is not None and run not in runs:
        raise UsageError(f"{file} has no run '{run}'", f"it has: {', '.join(runs) or 'no run names'}")
    if run is None and (len(runs) > 1 or len(listed) > 1):
        raise UsageError(f"{file} has {len(runs)} runs: {', '.join(runs[:8])}", f"name one: --run '{runs[0]}'")
    chosen = run or next(iter(runs), None)
    if chosen and charted and _is_group(rows, chosen):
        raise UsageError(
            f"{file}: '{chosen}' is the mean of a group of runs, not a single run",
            "turn off grouping in the chart, or export the table of runs",
        )
    if charted:
        return [
            {k.rsplit(" - ", 1)[-1]: v for k, v in row.items() if k.rsplit(" - ", 1)[0] in (chosen, k)} for row in rows
        ]
    return [row for row in rows if str(row["Name"]) == chosen] if listed else rows


def _is_group(rows: list[Object], name: str) -> bool:
    """Return whether a chart's column is a mean over several runs, which W&B names `Group: x` or `key: value`."""
    if name.startswith("Group: "):
        return True
    spread = (
        (_number(row.get(key)), _number(row.get(f"{key.removesuffix('__MIN')}__MAX")))
        for row in rows
        for key in row
        if key.startswith(f"{name} - ") and key.endswith("__MIN")
    )
    return ": " in name and any(low is not None and high is not None and low < high for low, high in spread)


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


def _with_history(file: Path, name: str, rows: Mapping[int, Object], test: float | None) -> RunRecord:
    if not rows and test is None:
        raise RecordError(
            f"{file} has neither epochs nor a test accuracy", "expected keys such as val_accuracy, test_accuracy"
        )
    try:
        history = [Epoch.model_validate(rows[epoch]) for epoch in sorted(rows)]
    except ValidationError as error:
        raise RecordError(f"{file}: {format_validation_error(error, Epoch).message}") from None
    known = [epoch for epoch in history if epoch.val_accuracy is not None]
    best = max(known, key=lambda epoch: epoch.val_accuracy or 0.0, default=None)
    return _record(
        name=name,
        test_accuracy=test,
        history=history,
        best_epoch=best and best.epoch,
        val_accuracy=best and best.val_accuracy,
    )


def _record(**values: Any) -> RunRecord:
    try:
        return RunRecord.model_validate(values)
    except ValidationError as error:
        raise RecordError(format_validation_error(error, RunRecord).message) from None


def _renamed(row: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Return the finite numbers of a row under our names, each by the first of its names that has one."""
    found = {}
    for ours, theirs in names.items():
        numbers = (_number(row.get(name)) for name in theirs)
        value = next((number for number in numbers if number is not None), None)
        if value is not None:
            found[ours] = value
    return found


def _number(value: Any) -> float | None:
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
