"""Records from CSV files of predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inat_ft.errors import PluginError
from inat_ft.evaluation.predictions import confusion, read_predictions, score
from inat_ft.paths import relative_path
from inat_ft.records import Evaluation, RunRecord
from inat_ft_importers.history import make_record


def from_predictions(
    file: Path, name: str, out: Path, warn: Callable[[PluginError], None] = lambda error: None
) -> RunRecord:
    """Return a record that refers to a predictions CSV by its path relative to `out`.

    warn: called with the error of each metric plugin that failed and is left out. Raises RecordError.
    """
    predictions = read_predictions(file)
    metrics, per_class, errors = score(predictions)
    for error in errors:
        warn(error)
    path = relative_path(file.resolve(), out.resolve().parent)
    test = Evaluation(
        subset="test",
        num_images=len(predictions),
        fingerprint="",
        metrics=metrics,
        per_class=per_class,
        confusion=confusion(predictions).tolist(),
        predictions=path,
    )
    return make_record(
        name=name,
        test_accuracy=metrics["accuracy"].value,
        num_test=len(predictions),
        classes=list(predictions.classes),
        test=test,
        predictions={"test": path},
    )
