"""Predictions for images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.sources.base import is_ignored
from inat_ft.errors import DataError, UsageError
from inat_ft.evaluation.predict import InferenceConfig, load_model, predict_files
from inat_ft.evaluation.tabular import write_csv as write_rows
from inat_ft.progress import ProgressFn, ignore_progress


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image. probabilities: float64 `[C]`, in the order of the classes."""

    path: Path
    classes: Sequence[str]
    probabilities: NDArray[np.float64]

    def top(self, number: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")[:number]
        return [(self.classes[place], float(self.probabilities[place])) for place in order]


def predict_images(
    run: Path,
    images: Sequence[Path],
    inference: InferenceConfig = InferenceConfig(),
    progress: ProgressFn = ignore_progress,
) -> tuple[list[Prediction], list[DataError]]:
    """Return the predictions of a run's model for images, and the errors of images that cannot be read.

    run: a run directory, its record.json, or a model.safetensors. images: files, or folders that are searched recursively.
    Raises UsageError when one is missing or a folder has no files.
    """
    paths = [path for given in images for path in _files(given)]
    trained = load_model(run if run.suffix == ".safetensors" else _folder(run) / "model.safetensors", inference)
    problems: dict[int, DataError] = {}
    shares = predict_files(trained, paths, inference.tta, progress, problems).numpy()
    answers = [
        Prediction(path, trained.classes, shares[number]) for number, path in enumerate(paths) if number not in problems
    ]
    return answers, [problems[number] for number in sorted(problems)]


def write_csv(answers: Sequence[Prediction], file: Path) -> None:
    """Write `path,predicted,p_<class>...` as CSV, atomically."""
    header = ["path", "predicted", *(f"p_{name}" for name in answers[0].classes)]
    write_rows(file, header, ([a.path.as_posix(), a.top(1)[0][0], *a.probabilities.tolist()] for a in answers))


def _folder(run: Path) -> Path:
    folder = run if run.is_dir() else run.parent
    if not (folder / "model.safetensors").is_file():
        raise UsageError(f"{run} is not a run: it has no model.safetensors", "name a run directory, such as runs/NAME")
    return folder


def _files(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise UsageError(f"no such image or folder: {given}")
    inside = (path for path in given.rglob("*") if path.is_file() and not path.is_symlink())
    found = sorted(path for path in inside if not any(is_ignored(part) for part in path.relative_to(given).parts))
    if not found:
        raise UsageError(f"the folder {given} has no files")
    return found
