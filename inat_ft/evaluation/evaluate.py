"""Evaluation of a run: predictions, metrics, figures, and their entries in the record and the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inat_ft.errors import PluginError
from inat_ft.evaluation.cam import check_cam, grad_cam
from inat_ft.evaluation.ledger import record_test_evaluation
from inat_ft.evaluation.plots import draw_images, draw_plots, most_confident_mistakes, sample_grid
from inat_ft.evaluation.predict import InferenceConfig, LoadedModel, load_model, predict_subset
from inat_ft.evaluation.predictions import read_predictions, write_predictions
from inat_ft.evaluation.scores import confusion, score
from inat_ft.metrics.builtin import LogLoss
from inat_ft.metrics.calibration import Ece, fit_temperature, temperature_scale
from inat_ft.metrics.predictions import Predictions
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.records import Evaluation, MetricValue, RunRecord, read_record, write_record


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation wrote. errors: of metric plugins that failed and are left out."""

    record: RunRecord
    evaluation: Evaluation
    directory: Path
    figures: list[Path]
    errors: list[PluginError]


def evaluate_run(
    run: Path,
    subset: str,
    inference: InferenceConfig = InferenceConfig(),
    *,
    root: Path | None = None,
    cam: bool = False,
    progress: ProgressFn = ignore_progress,
) -> EvaluationResult:
    """Evaluate a run (its directory or record.json) on a subset, and write the results beside its record.

    root: folder of the images, if they have moved. cam: draw Grad-CAM maps too. An evaluation of the test set is recorded in
    the ledger beside the manifest before any result is shown.
    """
    record, file = read_record(run)
    directory = file.parent
    trained = load_model(directory / "model.safetensors", inference)
    if cam:
        check_cam(trained)  # before the test set is evaluated
    predictions, manifest = predict_subset(trained, record, directory, subset, inference.tta, root, progress)
    fingerprint = manifest.subset_fingerprint(subset)
    count = None
    if subset == "test":
        count = record_test_evaluation(manifest.path, fingerprint, record.name, float(predictions.correct.mean()))
    name = f"predictions-{subset}.csv"
    write_predictions(directory / name, predictions)
    scores = score(predictions)
    calibrated = _calibrated(predictions, record, directory, trained.preprocess.eval_size, inference.tta)
    evaluation = Evaluation(
        subset=subset,
        num_images=len(predictions),
        fingerprint=fingerprint,
        metrics=scores.metrics | calibrated,
        per_class=scores.per_class,
        confusion=confusion(predictions).tolist(),
        predictions=name,
        look=count,
        tta=inference.tta,
        image_size=trained.preprocess.eval_size,
    )
    record = _with(record, evaluation, name)
    write_record(record, file)
    figures = draw_plots(predictions, directory / "figures", subset, manifest.root)
    if cam:
        figures += _draw_cam(predictions, trained, directory / "figures", subset, manifest.root)
    return EvaluationResult(record, evaluation, directory, figures, scores.errors)


def _draw_cam(p: Predictions, trained: LoadedModel, folder: Path, subset: str, root: Path) -> list[Path]:
    """Draw Grad-CAM of the predicted class on the images of the grid and on the most confident mistakes."""
    chosen = {"cam": (sample_grid(p), f"{subset} images: Grad-CAM of the predicted class")}
    if p.probabilities is not None:
        mistakes = most_confident_mistakes(p)
        chosen["cam_mistakes"] = (mistakes, "Most confident mistakes: Grad-CAM of the predicted class")
    files = []
    for name, (rows, title) in chosen.items():
        if rows:
            maps = grad_cam(trained, [root / p.paths[row] for row in rows], p.predicted[rows].tolist()).numpy()
            files += draw_images(p, rows, folder / f"{name}-{subset}", root, title, maps)
    return files


def _calibrated(
    predictions: Predictions, record: RunRecord, directory: Path, image_size: int, tta: str
) -> dict[str, MetricValue]:
    """Return metrics after temperature scaling, fitted on validation predictions made in the same way; else nothing."""
    name, preprocess = record.predictions.get("val"), record.preprocess
    size = (record.val and record.val.image_size) or preprocess.get("eval_image_size") or preprocess.get("image_size")
    same = size == image_size and (record.val.tta if record.val else "none") == tta
    if name is None or not (directory / name).is_file() or not same:
        return {}
    validation = read_predictions(directory / name)
    if validation.probabilities is None:
        return {}
    temperature = fit_temperature(validation)
    scaled = temperature_scale(predictions, temperature)
    return {
        "temperature": MetricValue(value=temperature, method="fitted on validation"),
        "ece_calibrated": MetricValue(value=Ece().value(scaled)),
        "log_loss_calibrated": MetricValue(value=LogLoss().value(scaled)),
    }


def _with(record: RunRecord, evaluation: Evaluation, name: str) -> RunRecord:
    update: dict[str, object] = {
        evaluation.subset: evaluation,
        "predictions": {**record.predictions, evaluation.subset: name},
    }
    if evaluation.subset == "test":
        update |= {"test_accuracy": evaluation.metrics["accuracy"].value, "num_test": evaluation.num_images}
    return record.model_copy(update=update)
