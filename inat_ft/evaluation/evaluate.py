"""One evaluation of a run: predictions, metrics, figures, and its entry in the record and the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inat_ft.evaluation.cam import check_cam, grad_cam
from inat_ft.evaluation.figures import draw_figures, draw_overlays, most_confident_mistakes, sample_grid
from inat_ft.evaluation.ledger import record_test_evaluation
from inat_ft.evaluation.metrics import compute_metrics, confusion, ece, fit_temperature, log_loss, temperature_scale
from inat_ft.evaluation.predict import InferenceConfig, LoadedModel, load_model, predict_subset
from inat_ft.evaluation.predictions import Predictions, read_predictions, write_predictions
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.records import Evaluation, Metric, RunRecord, read_record, write_record


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation left behind."""

    record: RunRecord
    evaluation: Evaluation
    directory: Path
    figures: list[Path]


def evaluate_run(
    run: Path,
    subset: str,
    inference: InferenceConfig = InferenceConfig(),
    *,
    root: Path | None = None,
    cam: bool = False,
    progress: ProgressFn = ignore_progress,
) -> EvaluationResult:
    """Evaluate a run (its directory or record.json) on a subset and write everything beside its record.

    root: where the images are, when they have moved. cam: overlay where the network looked, too.
    A look at the test set is counted in the ledger beside the manifest before anything of it is shown.
    """
    record, file = read_record(run)
    directory = file.parent
    trained = load_model(directory / "model.safetensors", inference)
    if cam:
        check_cam(trained)  # before the test set is looked at
    predictions, manifest = predict_subset(trained, record, directory, subset, inference.tta, root, progress)
    fingerprint = manifest.subset_fingerprint(subset)
    look = None
    if subset == "test":
        look = record_test_evaluation(manifest.path, fingerprint, record.name, float(predictions.correct.mean()))
    name = f"predictions-{subset}.csv"
    write_predictions(directory / name, predictions)
    metrics, per_class = compute_metrics(predictions)
    temperature = _temperature(record, directory, trained.preprocess.eval_size, inference.tta)
    if temperature is not None:
        metrics |= _calibrated(predictions, temperature)
    evaluation = Evaluation(
        subset=subset,
        num_images=len(predictions),
        fingerprint=fingerprint,
        metrics=metrics,
        per_class=per_class,
        confusion=confusion(predictions).tolist(),
        predictions=name,
        look=look,
        tta=inference.tta,
        image_size=trained.preprocess.eval_size,
    )
    record = _with(record, evaluation, name)
    write_record(record, file)
    figures = draw_figures(predictions, directory / "figures", subset, manifest.root)
    if cam:
        figures += _overlays(predictions, trained, directory / "figures", subset, manifest.root)
    return EvaluationResult(record, evaluation, directory, figures)


def _overlays(predictions: Predictions, trained: LoadedModel, folder: Path, subset: str, root: Path) -> list[Path]:
    """Grad-CAM of the predicted class on the images of the grid, and on the most confident mistakes."""
    chosen = {"cam": (sample_grid(predictions), f"{subset} images: Grad-CAM of the predicted class")}
    if predictions.probabilities is not None:
        chosen["cam_mistakes"] = (
            most_confident_mistakes(predictions),
            "Most confident mistakes: Grad-CAM of the predicted class",
        )
    files = []
    for name, (directories, title) in chosen.items():
        if directories:
            paths = [root / predictions.paths[place] for place in directories]
            maps = grad_cam(trained, paths, predictions.predicted[directories].tolist()).numpy()
            files += draw_overlays(predictions, directories, maps, folder / f"{name}-{subset}", root, title)
    return files


def _temperature(record: RunRecord, directory: Path, image_size: int, tta: str) -> float | None:
    """Fitted on the run's validation predictions, never on the test set; they must have been made in the same way."""
    name, said = record.predictions.get("val"), record.preprocess
    size = (record.val and record.val.image_size) or said.get("eval_image_size") or said.get("image_size")
    same = size == image_size and (record.val.tta if record.val else "none") == tta
    if name is None or not (directory / name).is_file() or not same:
        return None
    predictions = read_predictions(directory / name)
    return fit_temperature(predictions) if predictions.probabilities is not None else None


def _calibrated(predictions: Predictions, temperature: float) -> dict[str, Metric]:
    scaled = temperature_scale(predictions, temperature)
    return {
        "temperature": Metric(value=temperature, method="fitted on validation"),
        "ece_calibrated": Metric(value=ece(scaled).value),
        "log_loss_calibrated": Metric(value=log_loss(scaled).value),
    }


def _with(record: RunRecord, evaluation: Evaluation, name: str) -> RunRecord:
    update: dict[str, object] = {
        evaluation.subset: evaluation,
        "predictions": {**record.predictions, evaluation.subset: name},
    }
    if evaluation.subset == "test":
        update |= {"test_accuracy": evaluation.metrics["accuracy"].value, "num_test": evaluation.num_images}
    return record.model_copy(update=update)
