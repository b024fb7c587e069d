"""Prediction sets of a run: calibrated on its validation predictions, added to predictions, and checked on test images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.predict import InferenceConfig, model_file
from inat_ft.evaluation.prediction import Prediction
from inat_ft.evaluation.predictions import align, read_predictions
from inat_ft.metrics.base import Predictions
from inat_ft.metrics.bounds import Floats
from inat_ft.records import read_record, write_text
from inat_ft.text import few
from inat_ft_conformal.assessment import Assessment, assess
from inat_ft_conformal.drawing import draw_curves
from inat_ft_conformal.sets import fewest_images, fit_thresholds, in_set
from inat_ft_conformal.temperature import validation_predictions


@dataclass(frozen=True)
class PredictionSets:
    """The calibrated sets of a run.

    validation: predictions on the calibration images; thresholds: `[C]`.
    """

    directory: Path
    coverage: float
    by_class: bool
    validation: Predictions
    thresholds: Floats

    def add_to(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Return the predictions with their sets, the most probable class first."""
        if not predictions:
            return []
        members = in_set(np.stack([each.probabilities for each in predictions]), self.thresholds)
        found = []
        for each, row in zip(predictions, members.tolist(), strict=True):
            names = {name for name, inside in zip(each.classes, row, strict=True) if inside}
            chosen = tuple(name for name, _ in each.top(len(row)) if name in names)
            found.append(replace(each, set=chosen, decision="accept" if len(chosen) == 1 else "review"))
        return found

    def assess(self, figures: list[Path]) -> Assessment:
        """Measure the sets on the predictions of the last evaluation on the test set; write a figure and a JSON file.

        figures: gets the files of the figure.
        """
        test = read_predictions(self.directory / "predictions-test.csv")
        found = assess(self.validation, test, self.thresholds, self.coverage, self.by_class)
        figures.extend(draw_curves(self.validation, test, found, self.directory / "figures"))
        write_text(self.directory / "conformal-test.json", json.dumps(found.to_dict(), indent=2) + "\n")
        return found


def calibrate(runs: Sequence[Path], inference: InferenceConfig, subset: str = "test") -> PredictionSets:
    """Calibrate prediction sets on the validation predictions of runs, whose probabilities are averaged.

    Raises UsageError if there are none, too few images for the coverage, or if the subset to predict is not the test set.
    """
    if subset != "test":
        raise UsageError("prediction sets are calibrated on the validation images", "use --coverage with --subset test")
    coverage, by_class = inference.coverage, inference.by_class
    if coverage is None:
        raise UsageError("--by-class requires --coverage", "add --coverage 0.9, or remove --by-class")
    if not 0 < coverage < 1:
        raise UsageError(f"--coverage {coverage:g} is not between 0 and 1", "for 90%, pass 0.9")
    directories = [model_file(run).parent for run in runs]
    first, *others = [_validation(directory, inference) for directory in directories]
    probabilities = [first.require_probabilities()]
    for directory, other in zip(directories[1:], others, strict=True):
        aligned = align(first, other)
        if isinstance(aligned, str):
            raise UsageError(
                f"the validation predictions of {directories[0]} and {directory} cannot be averaged: {aligned}",
                "with --coverage, average runs of the same split",
            )
        probabilities.append(aligned.require_probabilities())
    validation = replace(first, probabilities=np.mean(probabilities, axis=0))
    validation = replace(validation, predicted=validation.require_probabilities().argmax(1))
    _check_counts(validation, coverage, by_class)
    thresholds = fit_thresholds(validation.require_probabilities(), validation.true, coverage, by_class)
    return PredictionSets(directories[0], coverage, by_class, validation, thresholds)


def _validation(directory: Path, inference: InferenceConfig) -> Predictions:
    """Return the validation predictions of a run, with its classes in their order."""
    record, file = read_record(directory)
    size = inference.image_size or record.preprocess.get("eval_image_size") or record.preprocess.get("image_size")
    found = validation_predictions(record, directory, size, inference.tta)
    if found is None:
        options = f" --tta {inference.tta}" if inference.tta != "none" else ""
        options += f" --image-size {inference.image_size}" if inference.image_size else ""
        raise UsageError(
            f"{directory} has no validation predictions with probabilities that were made with the same options",
            f"run: inat-ft eval {directory} --subset val{options}",
        )
    if list(found.classes) != record.classes:
        raise RecordError(f"the validation predictions of {directory} have other classes than {file}")
    return found


def _check_counts(validation: Predictions, coverage: float, by_class: bool) -> None:
    """Raise UsageError if there are so few calibration images that each set would contain all classes."""
    needed = fewest_images(coverage)
    if len(validation) < needed:
        raise UsageError(
            f"coverage {coverage} requires at least {needed:,} validation images; there are {len(validation):,}",
            "choose a lower coverage, or split again with more validation images",
        )
    counts = np.bincount(validation.true, minlength=len(validation.classes)).tolist()
    small = [f"{name} ({count})" for name, count in zip(validation.classes, counts, strict=True) if count < needed]
    if by_class and small:
        raise UsageError(
            f"coverage {coverage} by class requires at least {needed:,} validation images of each class; "
            f"there are fewer of {few(small)}",
            "choose a lower coverage, or calibrate all classes together, without --by-class",
        )
