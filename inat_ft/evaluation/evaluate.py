"""One evaluation of a run: predictions, metrics, figures, and its entry in the record and the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inat_ft.evaluation.cam import heat_maps, require_maps
from inat_ft.evaluation.figures import draw_figures, draw_overlays, sample, worst
from inat_ft.evaluation.ledger import count_look
from inat_ft.evaluation.metrics import all_metrics, at_temperature, confusion, ece, fit_temperature, log_loss
from inat_ft.evaluation.predict import Inference, Trained, load_for, predict_subset
from inat_ft.evaluation.predictions import Predictions, read_predictions, write_predictions
from inat_ft.records import Evaluation, Metric, RunRecord, read_record, write_record


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation left behind."""

    record: RunRecord
    evaluation: Evaluation
    directory: Path
    figures: list[Path]


def evaluate_run(
    run: Path,
    subset: str,
    inference: Inference = Inference(),
    *,
    root: Path | None = None,
    cam: bool = False,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluated:
    """Evaluate a run (its directory or record.json) on a subset and write everything beside its record.

    root: where the images are, when they have moved. cam: overlay where the network looked, too.
    A look at the test set is counted in the ledger beside the manifest before anything of it is shown.
    """
    record, file = read_record(run)
    directory = file.parent
    trained = load_for(directory / "model.safetensors", inference)
    if cam:
        require_maps(trained)  # before the test set is looked at
    predictions, manifest = predict_subset(trained, record, directory, subset, inference.tta, root, tick)
    fingerprint = manifest.subset_fingerprint(subset)
    look = None
    if subset == "test":
        look = count_look(manifest.path, fingerprint, record.name, float(predictions.correct.mean()))
    name = f"predictions-{subset}.csv"
    write_predictions(directory / name, predictions)
    metrics, per_class = all_metrics(predictions)
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
    return Evaluated(record, evaluation, directory, figures)


def _overlays(predictions: Predictions, trained: Trained, folder: Path, subset: str, root: Path) -> list[Path]:
    """Grad-CAM of the predicted class on the images of the grid, and on the most confident mistakes."""
    chosen = {"cam": (sample(predictions), f"{subset} images: Grad-CAM of the predicted class")}
    if predictions.probabilities is not None:
        chosen["cam_mistakes"] = (worst(predictions), "Most confident mistakes: Grad-CAM of the predicted class")
    files = []
    for name, (places, title) in chosen.items():
        if places:
            paths = [root / predictions.paths[place] for place in places]
            maps = heat_maps(trained, paths, predictions.predicted[places].tolist()).numpy()
            files += draw_overlays(predictions, places, maps, folder / f"{name}-{subset}", root, title)
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
    scaled = at_temperature(predictions, temperature)
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
