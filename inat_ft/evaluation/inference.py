"""Predictions for images without labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.sources.base import is_ignored
from inat_ft.errors import DataError, UsageError
from inat_ft.evaluation.predict import InferenceConfig, load_model, predict_files
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.records import atomic_write


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image. probabilities: float64 `[C]`, in the order of the classes."""

    path: Path
    classes: Sequence[str]
    probabilities: NDArray[np.float64]

    def top(self, number: int) -> list[tuple[str, float]]:
        """The most probable classes, the first first, with their probabilities."""
        order = np.argsort(-self.probabilities, kind="stable")[:number]
        return [(self.classes[place], float(self.probabilities[place])) for place in order]


def predict_images(
    run: Path,
    images: Sequence[Path],
    inference: InferenceConfig = InferenceConfig(),
    progress: ProgressFn = ignore_progress,
) -> tuple[list[Prediction], list[DataError]]:
    """What the network of a run says of images, and which of them cannot be read.

    run: a run directory, its record.json, or a model.safetensors; images: files, or folders that are gone through.
    Raises UsageError when one is not there or a folder holds no file.
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
    """Write `path,predicted,p_<class>...` as CSV, atomically; probabilities with nine significant digits."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["path", "predicted", *(f"p_{name}" for name in answers[0].classes)])
        for answer in answers:
            shares = (f"{share:.9g}" for share in answer.probabilities)
            writer.writerow([answer.path.as_posix(), answer.top(1)[0][0], *shares])


def _folder(run: Path) -> Path:
    folder = run if run.is_dir() else run.parent
    if not (folder / "model.safetensors").is_file():
        raise UsageError(f"{run} is no run: it has no model.safetensors", "name a run directory, such as runs/NAME")
    return folder


def _files(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise UsageError(f"no such image or folder: {given}")
    inside = (path for path in given.rglob("*") if path.is_file() and not path.is_symlink())
    found = sorted(path for path in inside if not any(is_ignored(part) for part in path.relative_to(given).parts))
    if not found:
        raise UsageError(f"the folder {given} holds no file")
    return found
