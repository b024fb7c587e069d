"""Evaluate a classifier on the test set, and classify images with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from inat_ft.api.train import Run, RunLike
from inat_ft.errors import DataError, UsageError
from inat_ft.evaluation import evaluate as evaluation
from inat_ft.evaluation.predict import InferenceConfig, predict_images
from inat_ft.evaluation.prediction import Prediction
from inat_ft.evaluation.predictions import write_csv
from inat_ft.images.boxes import file_of
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.records import MetricValue, check_output
from inat_ft.tables import Table, Tabular
from inat_ft.text import few
from inat_ft.tracking import log_evaluation

Tta = Literal["none", "flip"]
Precision = Literal["fp32", "bf16", "auto"]
_SHOWN = 5


@dataclass(frozen=True)
class EvaluationResult(Tabular, evaluation.EvaluationResult):
    """Metrics with 95% intervals, predictions and figures of one evaluation."""

    @property
    def run(self) -> Run:
        """The run with its updated record."""
        return Run(self.record, self.directory)

    @property
    def metrics(self) -> Mapping[str, MetricValue]:
        """Metrics by name, such as `accuracy` and `macro_f1`; each has `value`, `low` and `high`."""
        return self.evaluation.metrics

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified images, 0 to 1."""
        return self.metrics["accuracy"].value

    @property
    def table(self) -> Table:
        """The metrics with their 95% intervals."""
        columns = {"metric": "", "value": ".4f", "low": ".4f", "high": ".4f"}
        rows = [(name, metric.value, metric.low, metric.high) for name, metric in self.metrics.items()]
        about = self.evaluation
        return Table(columns, rows, f"{self.record.name} on {about.num_images:,} {about.subset} images")

    @property
    def per_class(self) -> Table:
        """Precision, recall and F1 of each class."""
        columns = {"class": "", "images": ",", "precision": ".4f", "recall": ".4f", "F1": ".4f"}
        rows = [
            (row.name, row.num_images, row.precision.value, row.recall.value, row.f1.value)
            for row in self.evaluation.per_class
        ]
        return Table(columns, rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft eval --json` prints it."""
        figures = [file.as_posix() for file in self.figures]
        sets = {"conformal": self.conformal.to_dict()} if self.conformal else {}
        return {"run": self.record.name, **self.evaluation.model_dump(mode="json"), "figures": figures, **sets}


def evaluate(
    run: RunLike,
    subset: Literal["test", "val"] = "test",
    *,
    tta: Tta = "none",
    image_size: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    root: str | os.PathLike[str] | None = None,
    taxa: str | os.PathLike[str] | None = None,
    rollup: float = 0.8,
    cam: bool = False,
    coverage: float | None = None,
    by_class: bool = False,
    progress: ProgressFn = ignore_progress,
) -> EvaluationResult:
    """Evaluate a run and write metrics, predictions and figures to its folder.

        result = inat_ft.evaluate(run)
        result.metrics["accuracy"].value, result.metrics["accuracy"].low

    Each evaluation on the test set is counted in a file next to the manifest.

    Args:
        run: a Run, a run folder, or its record.json.
        subset: images to evaluate on.
        tta: test-time augmentation; `flip` averages the probabilities of the image and its mirror image.
        image_size: height and width of the images in pixels, 16 to 1024. Default: that of the run.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `fp32`, `bf16`, or `auto`.
        root: folder of the images, if they were moved.
        taxa: a CSV file (label,genus,family...) with the taxa of the classes, or `folders`. It adds the results by rank.
        rollup: smallest probability of a reported taxon, 0 to 1.
        cam: draw Grad-CAM maps. Requires the extra `cam`.
        coverage: calibrate prediction sets on the validation images, and measure them on the test images; see `predict`.
        by_class: with `coverage`, calibrate each class with its own images.
        progress: called with (done, total) images.

    Raises:
        UsageError: the run or the subset is missing, or the device is not available.
        RecordError: the manifest is missing or has changed since training.
        DataError: an image is missing or has changed since the split.
        WeightsError: the saved weights are damaged.
    """
    inference = InferenceConfig(device, precision, tta, image_size, taxa, rollup, coverage, by_class)
    moved = None if root is None else Path(root)
    found = evaluation.evaluate_run(Path(run), subset, inference, root=moved, cam=cam, progress=progress)
    log_evaluation(found.record, found.directory, subset)
    return EvaluationResult(**vars(found))


@dataclass(frozen=True)
class PredictionResult(Tabular, Sequence[Prediction]):
    """Predictions in the order of the images, and the images that could not be read."""

    predictions: Sequence[Prediction]
    skipped: Sequence[DataError] = field(default=())
    """One error per image that could not be read."""

    def __len__(self) -> int:
        return len(self.predictions)

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, place: int | slice) -> Prediction | Sequence[Prediction]:
        return self.predictions[place]

    @property
    def table(self) -> Table:
        """Path, predicted class and its probability, one row per image."""
        columns = {"image": "", "predicted": "", "probability": ".4f"}
        return Table(columns, [(each.path.as_posix(), *each.top(1)[0]) for each in self])

    def to_csv(self, file: str | os.PathLike[str]) -> None:
        """Write `path,predicted,confidence,p_<class>...`, one row per image; see `Prediction.columns` for taxa and sets."""
        check_output(Path(file))
        images = {os.path.realpath(file_of(str(each.path))) for each in self}
        if os.path.exists(file) and os.path.realpath(file) in images:
            raise UsageError(f"{file} is one of the images", "name another file")
        header = ["path", "predicted", "confidence", *self[0].columns(), *(f"p_{name}" for name in self[0].classes)]
        rows = (
            [each.path.as_posix(), *each.top(1)[0], *each.columns().values(), *each.probabilities.tolist()]
            for each in self
        )
        write_csv(Path(file), header, rows)

    def to_dicts(self, top: int = 3) -> list[dict[str, Any]]:
        """Return one dictionary per image with its `top` most probable classes, as `inat-ft predict --json` prints it."""
        return [
            {
                "path": each.path.as_posix(),
                "predicted": each.top(1)[0][0],
                "probability": each.top(1)[0][1],
                "top": [{"class": name, "probability": probability} for name, probability in each.top(top)],
                **({"taxon": each.taxon._asdict()} if each.taxon else {}),
                **({"set": each.set, "decision": each.decision} if each.set else {}),
            }
            for each in self
        ]


def predict(
    run: RunLike | Sequence[RunLike],
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    tta: Tta = "none",
    image_size: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    taxa: str | os.PathLike[str] | None = None,
    rollup: float = 0.8,
    coverage: float | None = None,
    by_class: bool = False,
    progress: ProgressFn = ignore_progress,
) -> PredictionResult:
    """Classify images with a trained network.

        for prediction in inat_ft.predict(run, "photos"):
            print(prediction.path, prediction.top(3))

    Args:
        run: a Run, a run folder, its record.json, or a model.safetensors; or several, whose probabilities are averaged.
        images: an image or a folder, or several of them. Folders are searched recursively.
        tta: test-time augmentation; `flip` averages the probabilities of the image and its mirror image.
        image_size: height and width of the images in pixels, 16 to 1024. Default: that of the run.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `fp32`, `bf16`, or `auto`.
        taxa: a CSV file (label,genus,family...) with the taxa of the classes, or `folders` to read them from folder names.
            Each prediction then has a `taxon`, at the lowest rank at which one has the probability `rollup`.
        rollup: smallest probability of a reported taxon, 0 to 1.
        coverage: add sets that contain the true class with this probability, 0 to 1, and a decision, accept or review.
        by_class: with `coverage`, calibrate each class with its own images.
        progress: called with (done, total) images.

    Raises:
        UsageError: a run or an image is missing, classes of the runs differ, or `coverage` has too few validation images.
        DataError: none of the images can be read. If only some cannot be read, the result names them in `skipped`.
        WeightsError: the saved weights are damaged.
    """
    given = [images] if isinstance(images, str | os.PathLike) else list(images)
    if not given:
        raise UsageError("no images to classify", "name an image or a folder of images")
    inference = InferenceConfig(device, precision, tta, image_size, taxa, rollup, coverage, by_class)
    runs = [Path(each) for each in ([run] if isinstance(run, str | os.PathLike) else run)]
    if not runs:
        raise UsageError("no run to predict with", "name at least one run")
    predictions, skipped = predict_images(runs, [Path(each) for each in given], inference, progress)
    if not predictions:
        problem = "cannot read any of the images" if skipped else f"no image is listed in {few(list(map(str, given)))}"
        lines = [error.message for error in skipped[:_SHOWN]]
        shown = "\n".join([problem, *lines, *["..."] * (len(skipped) > _SHOWN)])
        raise DataError(shown, "name other images, or folders of images")
    return PredictionResult(predictions, tuple(skipped))
