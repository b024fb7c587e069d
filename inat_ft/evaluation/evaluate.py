"""Evaluation of a run: predictions, metrics, figures, and their entries in the record and the ledger of the test set."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inat_ft.errors import InatFtError, PluginError
from inat_ft.evaluation.predict import InferenceConfig, calibrate_sets, load_model, manifest_of, predict_subset
from inat_ft.evaluation.prediction import load_taxonomy
from inat_ft.evaluation.predictions import confusion, score, write_predictions
from inat_ft.locks import FileLock, lock_run
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.records import Evaluation, RunRecord, read_record, write_record
from inat_ft.registry import FEATURES, get


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation wrote. errors: of metric plugins that failed and are left out.

    conformal: with a coverage, prediction sets and accepted images, as `table`, `summary` and `to_dict()`.
    """

    record: RunRecord
    evaluation: Evaluation
    directory: Path
    figures: list[Path]
    errors: list[PluginError]
    conformal: Any = None


def evaluate_run(
    run: Path,
    subset: str,
    inference: InferenceConfig = InferenceConfig(),
    *,
    root: Path | None = None,
    cam: bool = False,
    progress: ProgressFn = ignore_progress,
) -> EvaluationResult:
    """Evaluate a run as described in `inat_ft.evaluate`. The test set's ledger is written before any result is shown."""
    directory = read_record(run)[1].parent
    with lock_run(directory):
        record, file = read_record(run)
        trained = load_model(directory / "model.safetensors", inference)
        sets = calibrate_sets([directory], inference, subset)
        taxonomy = load_taxonomy(inference.taxa, record.classes, lambda: manifest_of(record, directory, root))
        draw_cam = get(FEATURES, "cam").load()(trained) if cam else None  # raises before the test set is evaluated
        predictions, manifest = predict_subset(trained, record, directory, subset, inference.tta, root, progress)
        fingerprint = manifest.subset_fingerprint(subset)
        update: dict[str, object] = {}
        if subset == "test":
            accuracy = float(predictions.correct.mean())
            count = record_test_evaluation(manifest.path, fingerprint, record.name, accuracy)
            update = {"test_accuracy": accuracy, "num_test": len(predictions)}
        write_predictions(directory / (name := f"predictions-{subset}.csv"), predictions)
        metrics, per_class, errors = score(predictions)
        size, groups = trained.preprocess.eval_size, None
        if manifest.made.get("group_by"):
            metrics, groups = get(FEATURES, "groups").load()(predictions, manifest, subset, metrics, directory)
        calibrated = get(FEATURES, "temperature").load()(predictions, record, directory, size, inference.tta)
        evaluation = Evaluation(
            subset=subset,
            num_images=len(predictions),
            fingerprint=fingerprint,
            metrics=metrics | calibrated,
            per_class=per_class,
            confusion=confusion(predictions).tolist(),
            predictions=name,
            look=count if subset == "test" else None,
            tta=inference.tta,
            image_size=size,
            groups=groups,
            taxa=taxonomy and taxonomy.evaluate(predictions, inference.rollup, manifest, subset),
        )
        named = {**record.predictions, subset: name}
        record = record.model_copy(update=update | {subset: evaluation, "predictions": named})
        write_record(record, file)
        drawn = predictions, directory / "figures", subset, manifest.root
        figures: list[Path] = get(FEATURES, "figures").load()(*drawn) + (draw_cam(*drawn) if draw_cam else [])
        return EvaluationResult(record, evaluation, directory, figures, errors, sets and sets.assess(figures))


def record_test_evaluation(manifest: Path, fingerprint: str, run: str, accuracy: float) -> int:
    """Add an evaluation of the test set with this fingerprint to the ledger beside the manifest.

    Return how many there are with it. Raises InatFtError when it cannot be written.
    """
    file, now = manifest.with_name(f"{manifest.name}.looks.jsonl"), datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"when": now, "run": run, "accuracy": accuracy, "test": fingerprint}
    try:
        with FileLock(f"{file}.lock"), file.open("a+", encoding="utf-8", errors="replace", newline="\n") as ledger:
            ledger.seek(0)
            number = 1 + sum(fingerprint in line for line in ledger)
            ledger.write(json.dumps(entry) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
    except OSError as error:
        raise InatFtError(f"cannot record the evaluation of the test set in {file}: {error.strerror}") from error
    return number
