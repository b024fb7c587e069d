"""Records of other code bases: made from predictions, a W&B export, or a Hugging Face trainer state."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inat_ft.config import explain
from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.metrics import all_metrics, confusion
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.records import Epoch, Evaluation, RunRecord

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
    metrics, per_class = all_metrics(predictions)
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


def from_wandb(file: Path, name: str) -> RunRecord:
    """A record from what W&B exports of one run: history as CSV or JSON (a list of rows), or the summary as JSON.

    Raises RecordError when there is neither an accuracy on the test set nor a history of epochs in it.
    """
    rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _json_rows(file)
    history: dict[int, dict[str, Any]] = {}
    test: float | None = None
    for number, row in enumerate(rows, 1):
        found = {ours: _first(row, names) for ours, names in _WANDB_NAMES.items()}
        test = next((value for value in (_first(row, _TEST_NAMES),) if value is not None), test)
        epoch = int(found.pop("epoch") or number)
        values = {key: value for key, value in found.items() if value is not None}
        if values:
            history.setdefault(epoch, {"epoch": epoch}).update(values)
    return _with_history(file, name, list(history.values()), test)


def from_trainer_state(file: Path, name: str) -> RunRecord:
    """A record from a Hugging Face trainer_state.json. Raises RecordError when it is none."""
    (state,) = _json_rows(file)
    log = state.get("log_history")
    if not isinstance(log, list):
        raise RecordError(f"{file} is no trainer_state.json: it has no log_history")
    history: dict[int, dict[str, Any]] = {}
    test: float | None = None
    for entry in log:
        number = _number(entry.get("epoch")) if isinstance(entry, Mapping) else None
        if number is None:
            continue
        epoch = history.setdefault(max(1, math.ceil(number)), {"epoch": max(1, math.ceil(number))})
        pairs = (("loss", "train_loss"), ("eval_loss", "val_loss"), ("eval_accuracy", "val_accuracy"))
        epoch.update({ours: value for theirs, ours in pairs if (value := _number(entry.get(theirs))) is not None})
        test = next((value for value in (_number(entry.get("test_accuracy")),) if value is not None), test)
    return _with_history(file, name, list(history.values()), test)


def _with_history(file: Path, name: str, rows: list[dict[str, Any]], test: float | None) -> RunRecord:
    if not rows and test is None:
        raise RecordError(
            f"{file} holds neither epochs nor a test accuracy", "expected keys such as val_accuracy, test_accuracy"
        )
    try:
        history = [Epoch.model_validate(row) for row in sorted(rows, key=lambda row: row["epoch"])]
    except ValidationError as error:
        raise RecordError(f"{file}: {explain(error, Epoch).message}") from None
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
        raise RecordError(explain(error, RunRecord).message) from None


def _json_rows(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError:
            loaded = [json.loads(line) for line in text.splitlines() if line.strip()]  # one object a line
    except FileNotFoundError:
        raise UsageError(f"no such file: {file}") from None
    except (OSError, ValueError) as error:
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
    # W&B puts the run's name before the metric: "run-7 - val_accuracy"
    return [{(key or "").rsplit(" - ", 1)[-1]: value for key, value in row.items()} for row in rows]


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
