"""Records of other code bases: made from predictions, a W&B export, or a Hugging Face trainer state."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.metrics import compute_metrics, confusion
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.records import Epoch, Evaluation, RunRecord
from inat_ft.validation import format_validation_error

_WANDB_NAMES = {
    "epoch": ("epoch",),
    "train_loss": ("train_loss", "train/loss", "loss"),
    "train_accuracy": ("train_accuracy", "train/accuracy", "accuracy", "train_acc"),
    "val_loss": ("val_loss", "val/loss", "eval_loss"),
    "val_accuracy": ("val_accuracy", "val/accuracy", "val_acc", "eval_accuracy"),
}
_TEST_NAMES = ("test_accuracy", "test/accuracy", "test_acc")


def from_predictions(file: Path, name: str, out: Path) -> RunRecord:
    """A record from a predictions CSV, which it points to, relative to where it will lie. Raises RecordError."""
    import os

    predictions = read_predictions(file)
    metrics, per_class = compute_metrics(predictions)
    path = Path(os.path.relpath(file.resolve(), out.resolve().parent)).as_posix()
    test = Evaluation(
        subset="test",
        num_images=len(predictions),
        fingerprint="",
        metrics=metrics,
        per_class=per_class,
        confusion=confusion(predictions).tolist(),
        predictions=path,
    )
    return _record(
        name=name,
        test_accuracy=metrics["accuracy"].value,
        num_test=len(predictions),
        classes=list(predictions.classes),
        test=test,
        predictions={"test": path},
    )


def from_wandb(file: Path, name: str, run: str | None = None) -> RunRecord:
    """A record from what W&B exports of one run: history as CSV or JSON (a list of rows), or the summary as JSON.

    run: which one, where the export holds several. Raises UsageError when that is not said, RecordError when there is
    neither an accuracy on the test set nor a history of epochs in it.
    """
    rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _json_rows(file)
    rows = _of_one_run(file, _transposed(rows), run)
    pluralize = [number for row in rows if (number := _first(row, ("epoch",))) is not None]
    history: dict[int, dict[str, Any]] = {}
    test: float | None = None
    for row in rows:
        found = {ours: _first(row, names) for ours, names in _WANDB_NAMES.items()}
        test = next((value for value in (_first(row, _TEST_NAMES),) if value is not None), test)
        said = found.pop("epoch")
        values = {key: value for key, value in found.items() if value is not None}
        if said is None and (pluralize or (found["val_accuracy"] is None and found["val_loss"] is None)):
            continue  # a step: without validation it ends no epoch
        epoch = len(history) + 1 if said is None else int(said) + (1 if min(pluralize) < 1 else 0)
        if values:
            history.setdefault(epoch, {"epoch": epoch}).update(values)
    return _with_history(file, name, list(history.values()), test)


def _transposed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table that was written by columns, as pandas does; others as they are."""
    columns = rows[0]
    if len(rows) > 1 or not columns or not all(isinstance(column, dict | list) for column in columns.values()):
        return rows
    listed = {key: list(column.values()) if isinstance(column, dict) else column for key, column in columns.items()}
    return [dict(zip(listed, values, strict=True)) for values in zip(*listed.values(), strict=False)]


def _of_one_run(file: Path, rows: list[dict[str, Any]], run: str | None) -> list[dict[str, Any]]:
    """The rows of one run: of a chart's export, whose columns are `run - metric`, or of a table with a run in each row."""
    charted = {key.rsplit(" - ", 1)[0] for row in rows for key in row if " - " in key}
    listed = [str(row["Name"]) for row in rows if "Name" in row and "_step" not in row]
    runs = sorted(charted or set(listed))
    if run is not None and run not in runs:
        raise UsageError(f"{file} holds no run '{run}'", f"it has: {', '.join(runs) or 'no names of runs'}")
    if run is None and (len(runs) > 1 or len(listed) > 1):
        raise UsageError(f"{file} holds {len(runs)} runs: {', '.join(runs[:8])}", f"name one: --run '{runs[0]}'")
    chosen = run or next(iter(runs), None)
    if chosen and charted and _is_group(rows, chosen):
        raise UsageError(
            f"{file}: '{chosen}' is the mean of a group of runs, not one run",
            "turn grouping off in the chart, or export the table of runs",
        )
    if charted:
        return [
            {k.rsplit(" - ", 1)[-1]: v for k, v in row.items() if k.rsplit(" - ", 1)[0] in (chosen, k)} for row in rows
        ]
    return [row for row in rows if str(row["Name"]) == chosen] if listed else rows


def _is_group(rows: list[dict[str, Any]], name: str) -> bool:
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


def from_trainer_state(file: Path, name: str) -> RunRecord:
    """A record from a Hugging Face trainer_state.json. Raises RecordError when it is none."""
    rows = _json_rows(file)
    log = rows[0].get("log_history") if len(rows) == 1 else None
    if not isinstance(log, list):
        raise RecordError(
            f"{file} is no trainer_state.json: it has no log_history", "it lies in each checkpoint folder"
        )
    history: dict[int, dict[str, Any]] = {}
    test: float | None = None
    for entry in _during_training(log):
        number = _number(entry.get("epoch"))
        test = next((value for value in (_number(entry.get("test_accuracy")),) if value is not None), test)
        if number is None or (number <= 0 and "loss" not in entry):
            continue  # an evaluation before the first step belongs to no epoch
        epoch = history.setdefault(max(1, math.ceil(number)), {"epoch": max(1, math.ceil(number))})
        pairs = (("loss", "train_loss"), ("eval_loss", "val_loss"), ("eval_accuracy", "val_accuracy"))
        epoch.update({ours: value for theirs, ours in pairs if (value := _number(entry.get(theirs))) is not None})
    return _with_history(file, name, list(history.values()), test)


def _during_training(log: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a Trainer log without evaluations that ran after the training.

    `train()` ends with an entry that holds `train_runtime`. A later `evaluate()` repeats the last epoch's number but
    measures the final weights, often those of the best epoch, or another data set. A resumed training logs `loss` again.
    """
    finished = False
    for entry in log:
        if not isinstance(entry, Mapping):
            continue
        if "loss" in entry:
            finished = False
        kept = {key: value for key, value in entry.items() if not (finished and str(key).startswith("eval_"))}
        finished = finished or "train_runtime" in entry
        yield kept


def _with_history(file: Path, name: str, rows: list[dict[str, Any]], test: float | None) -> RunRecord:
    if not rows and test is None:
        raise RecordError(
            f"{file} holds neither epochs nor a test accuracy", "expected keys such as val_accuracy, test_accuracy"
        )
    try:
        history = [Epoch.model_validate(row) for row in sorted(rows, key=lambda row: row["epoch"])]
    except ValidationError as error:
        raise RecordError(f"{file}: {format_validation_error(error, Epoch).message}") from None
    known = [epoch for epoch in history if epoch.val_accuracy is not None]
    best = max(known, key=lambda epoch: epoch.val_accuracy or 0.0, default=None)
    return _record(
        name=name,
        test_accuracy=test,
        history=history,
        best_epoch=None if best is None else best.epoch,
        val_accuracy=None if best is None else best.val_accuracy,
    )


def _record(**values: Any) -> RunRecord:
    try:
        return RunRecord.model_validate(values)
    except ValidationError as error:
        raise RecordError(format_validation_error(error, RunRecord).message) from None


def _json_rows(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError:
            loaded = [json.loads(line) for line in text.splitlines() if line.strip()]  # one object a line
    except FileNotFoundError:
        raise UsageError(f"no such file: {file}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"cannot read {file} as JSON: {error}") from None
    rows = loaded if isinstance(loaded, list) else [loaded]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise RecordError(f"{file} holds no objects")
    return rows


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except FileNotFoundError:
        raise UsageError(f"no such file: {file}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"cannot read {file} as CSV: {error}") from None
    return [{key or "": value for key, value in row.items()} for row in rows]


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    return next((value for name in names if (value := _number(row.get(name))) is not None), None)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
