"""Records from a W&B export: the history of a run, or its summary."""

from __future__ import annotations

from pathlib import Path

from inat_ft.errors import UsageError
from inat_ft.evaluation.predictions import read_csv
from inat_ft.records import RunRecord
from inat_ft_importers.history import Object, read_objects, renamed, to_number, with_history

_WANDB_NAMES = {
    "epoch": ("epoch",),
    "train_loss": ("train_loss", "train/loss", "loss"),
    "train_accuracy": ("train_accuracy", "train/accuracy", "accuracy", "train_acc"),
    "val_loss": ("val_loss", "val/loss", "eval_loss"),
    "val_accuracy": ("val_accuracy", "val/accuracy", "val_acc", "eval_accuracy"),
    "test_accuracy": ("test_accuracy", "test/accuracy", "test_acc"),
}


def from_wandb(file: Path, name: str, run: str | None = None) -> RunRecord:
    """Return a record from a W&B export: the history of a run as CSV or JSON, or its summary as JSON.

    run: name of the run, where the export has several. Raises UsageError when it is needed and missing, RecordError when
    there is neither a test accuracy nor a history of epochs.
    """
    if file.suffix.lower() == ".csv":
        header, lines = read_csv(file)
        rows = [dict(zip(header, cells, strict=False)) for _, cells in lines]
    else:
        rows = _by_row(read_objects(file))
    found = [renamed(row, _WANDB_NAMES) for row in _of_one_run(file, rows, run)]
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
    return with_history(file, name, history, test)


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
        (to_number(row.get(key)), to_number(row.get(f"{key.removesuffix('__MIN')}__MAX")))
        for row in rows
        for key in row
        if key.startswith(f"{name} - ") and key.endswith("__MIN")
    )
    return ": " in name and any(low is not None and high is not None and low < high for low, high in spread)
