"""JSON files and training histories of other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inat_ft.errors import RecordError
from inat_ft.evaluation.predictions import read_text
from inat_ft.records import Epoch, RunRecord
from inat_ft.validation import format_validation_error

Object = dict[str, Any]


def read_objects(file: Path) -> list[Object]:
    """Return the objects of a JSON file: one object, a list of objects, or one object per line.

    Raises UsageError when the file is missing, RecordError when it cannot be read.
    """
    try:
        text = read_text(file)
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError:
            loaded = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"cannot read {file} as JSON: {error}") from None
    objects = loaded if isinstance(loaded, list) else [loaded]
    if not objects or not all(isinstance(value, dict) for value in objects):
        raise RecordError(f"{file} has no JSON objects")
    return objects


def with_history(file: Path, name: str, rows: Mapping[int, Object], test: float | None) -> RunRecord:
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
    return make_record(
        name=name,
        test_accuracy=test,
        history=history,
        best_epoch=best and best.epoch,
        val_accuracy=best and best.val_accuracy,
    )


def make_record(**values: Any) -> RunRecord:
    try:
        return RunRecord.model_validate(values)
    except ValidationError as error:
        raise RecordError(format_validation_error(error, RunRecord).message) from None


def renamed(row: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Return the finite numbers of a row under our names, each by the first of its names that has one."""
    found = {}
    for ours, theirs in names.items():
        numbers = (to_number(row.get(name)) for name in theirs)
        value = next((number for number in numbers if number is not None), None)
        if value is not None:
            found[ours] = value
    return found


def to_number(value: Any) -> float | None:
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
