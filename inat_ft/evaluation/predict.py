"""A trained model on images, with the same preprocessing as in training: on a subset of its manifest, or on any files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field, Json, ValidationError, field_validator
from torch import Tensor

from inat_ft.config import ModelConfig, build_backbone
from inat_ft.data.batches import Batches, ImageFiles, ImageInput
from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.data.sources.base import is_ignored
from inat_ft.data.sources.csv_file import read_rows
from inat_ft.data.verify import verify_hashes
from inat_ft.engine.device import Compute, choose_compute
from inat_ft.engine.loops import in_halves
from inat_ft.errors import ConfigError, DataError, RecordError, UsageError, WeightsError
from inat_ft.evaluation.prediction import Prediction, load_taxonomy
from inat_ft.evaluation.predictions import from_probabilities
from inat_ft.images.boxes import split_path
from inat_ft.metrics.base import Predictions
from inat_ft.metrics.bounds import Floats
from inat_ft.models.base import Preprocess
from inat_ft.models.build import build_net, check_input_size
from inat_ft.models.net import Net
from inat_ft.models.weights import read_metadata, read_state
from inat_ft.progress import ProgressFn, ignore_progress, no_progress
from inat_ft.records import RunRecord, missing_run, read_record
from inat_ft.registry import FEATURES, get
from inat_ft.settings import expand_user
from inat_ft.text import few
from inat_ft.threads import decoders
from inat_ft.validation import format_validation_error

_BATCH = 64


@dataclass(frozen=True)
class InferenceConfig:
    """How a trained model is run.

    device, precision: as in training. tta: test-time augmentation: none, or flip (mean over the image and its mirror image).
    image_size: height and width in pixels; default: those of the model. taxa: CSV with the taxa of the classes, or "folders".
    rollup: smallest probability of a reported taxon. coverage: probability that a prediction set has the true class;
    by_class: for each class; default: no sets.
    """

    device: str = "auto"
    precision: str = "fp32"
    tta: str = "none"
    image_size: int | None = None
    taxa: str | os.PathLike[str] | None = None
    rollup: float = 0.8
    coverage: float | None = None
    by_class: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A trained network on its device, with its classes and its preprocessing."""

    net: Net
    classes: tuple[str, ...]
    preprocess: Preprocess
    compute: Compute


@dataclass(frozen=True)
class SavedModel:
    """The content of a model.safetensors: weights by their original names, and what is needed to use them."""

    state: dict[str, Tensor]
    config: ModelConfig
    preprocess: Preprocess
    classes: tuple[str, ...]


class _Metadata(BaseModel):
    """The metadata of a model.safetensors, each value in JSON."""

    model: Json[ModelConfig]
    preprocess: Json[Preprocess]
    classes: Annotated[Json[list[str]], Field(min_length=1)]

    @field_validator("classes")
    @classmethod
    def _unique(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError(f"classes: a name is listed twice (got {few(classes)})")
        return classes


def read_model(file: Path) -> SavedModel:
    """Read a model.safetensors. Raises RecordError if it is missing, WeightsError if it cannot be used."""
    if not file.is_file():
        raise RecordError(f"the run has no {file.name}: {file} is missing", "train it again, or restore the file")
    state = read_state(file)
    try:
        found = _Metadata.model_validate(read_metadata(file))
        build_backbone(found.model)  # its options are validated
    except (ValidationError, ConfigError) as error:
        problem = format_validation_error(error, _Metadata) if isinstance(error, ValidationError) else error
        message = f"{file} does not describe its network:\n{problem.message}"
        raise WeightsError(message, "specify the model.safetensors of a run") from error
    return SavedModel(state, found.model, found.preprocess, tuple(found.classes))


def load_model(file: Path, inference: InferenceConfig, compute: Compute | None = None) -> LoadedModel:
    """Load a model onto the device. Raises as `read_model`, ConfigError for the image size, UsageError for the device."""
    compute = compute or choose_compute(inference.device, inference.precision)
    saved = read_model(file)
    preprocess = saved.preprocess
    net = build_net(saved.config, len(saved.classes), preprocess.image_size, seed=0, initialize=False)
    net.load_original_state_dict(saved.state, str(file))
    compute.place(net.eval())
    if inference.image_size is not None:
        check_input_size(net, inference.image_size, preprocess.image_size)
        preprocess = preprocess.model_copy(update={"eval_image_size": inference.image_size})
    return LoadedModel(net, saved.classes, preprocess, compute)


@torch.no_grad()
def predict_files(
    trained: LoadedModel,
    paths: Sequence[Path],
    tta: str,
    progress: ProgressFn,
    problems: dict[int, DataError] | None = None,
    hashes: Sequence[str] | None = None,
) -> Floats:
    """Return probabilities `[N, C]`. tta: none, or flip.

    problems: collects the errors of images that cannot be decoded, whose rows are then invalid; without it they are raised
    as DataError. hashes: SHA-256 in hex that each file must have when it is read. Raises WeightsError when a logit is not
    finite.
    """
    net, preprocess, compute = trained.net.eval(), trained.preprocess, trained.compute
    labels = torch.zeros(len(paths), dtype=torch.int64, device=compute.device)
    found: list[list[Tensor]] = [[], []] if tta == "flip" else [[]]

    prepare = ImageInput(preprocess.mean, preprocess.std)

    def logits(images: Tensor, is_mirrored: bool) -> Tensor:
        inputs = prepare(images.flip(2) if is_mirrored else images, torch.empty(0))
        with compute.autocast():
            features = net.forward_stages(inputs, 0, len(net.stages))
        output: Tensor = net.head(features.float())
        return output

    with decoders() as pool:
        source = ImageFiles(paths, preprocess.eval_size, pool, problems, preprocess.resizing, hashes)
        done = 0
        for images, _ in Batches(source, labels, _BATCH, lambda images, numbers: images)():
            done += len(images)
            progress(done, len(paths))
            for outputs, is_mirrored in zip(found, (False, True), strict=False):
                outputs.extend(in_halves(compute, partial(logits, is_mirrored=is_mirrored), images))
    shares = [_probabilities(torch.cat(outputs).cpu().double()).numpy() for outputs in found]
    return np.asarray(np.mean(shares, axis=0))


def _probabilities(logits: Tensor) -> Tensor:
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise WeightsError(
            f"the network's output is not finite for {bad:,} of {len(logits):,} images: its weights have NaN or infinity",
            "train it again with a lower learning rate, or restore the weights from a copy",
        )
    return logits.softmax(1)


def predict_subset(
    trained: LoadedModel,
    record: RunRecord,
    directory: Path,
    subset: str,
    tta: str = "none",
    root: Path | None = None,
    progress: ProgressFn = ignore_progress,
) -> tuple[Predictions, Manifest]:
    """Return a run's predictions on a subset, and its manifest with the current hashes. root: where the images are now."""
    manifest = manifest_of(record, directory, root)
    rows = manifest.rows(subset)
    if not len(rows):
        hint = "reserve some and train again: inat-ft split DATA --test-fraction 0.2"
        if "fold" in manifest.made:
            hint = "a cross-validation does not use them: train once without --folds, and evaluate that run"
        raise UsageError(f"{manifest.path} has no {subset} images", hint)
    hashes_now = verify_hashes(manifest, (subset,), None, changes_allowed(record), no_progress)
    manifest = replace(manifest, hashes=hashes_now)
    paths, hashes = ([column[row] for row in rows] for column in (manifest.paths, manifest.hashes))
    shares = predict_files(trained, [manifest.root / path for path in paths], tta, progress, hashes=hashes)
    return from_probabilities(trained.classes, paths, hashes, manifest.labels[rows], shares), manifest


def changes_allowed(record: RunRecord) -> str:
    """Return what the run does about image files that changed since the split: error or ignore."""
    return str((record.config.get("data") or {}).get("changed", "error"))


def manifest_of(record: RunRecord, directory: Path, root: Path | None = None) -> Manifest:
    """Return the manifest that a run was trained with. Raises RecordError when it is missing or has changed."""
    if record.split is None:
        raise RecordError(f"the record of '{record.name}' does not name its manifest, so its images are unknown")
    path = (directory / record.split.manifest).resolve()
    configured = (record.config.get("data") or {}).get("root")
    manifest = read_manifest(path, root or (expand_user(configured) if configured else None))
    if manifest.fingerprint != record.split.fingerprint:
        problem = f"{path} has changed since '{record.name}' was trained with it"
        raise RecordError(problem, "train again on the new split, or restore the old manifest")
    return manifest


def predict_images(
    runs: Sequence[Path],
    images: Sequence[Path],
    inference: InferenceConfig = InferenceConfig(),
    progress: ProgressFn = ignore_progress,
) -> tuple[list[Prediction], list[DataError]]:
    """Return predictions as described in `inat_ft.predict`, and the errors of images that cannot be read."""
    paths = [path for given in images for path in _files(given)]
    models = [load_model(model_file(run), inference) for run in runs]
    classes, problems = models[0].classes, dict[int, DataError]()
    for run, trained in zip(runs, models, strict=True):
        if trained.classes != classes:
            other = sorted(set(trained.classes) ^ set(classes))
            why = f"only one of them has {few(other)}" if other else "they are in another order"
            problem = f"the classes of {run} are not those of {runs[0]}: {why}"
            raise UsageError(problem, "average runs with the same classes")
    sets = calibrate_sets(runs, inference)
    taxonomy = load_taxonomy(inference.taxa, classes, lambda: manifest_of(*_record_of(runs[0])))
    mean = np.mean([predict_files(each, paths, inference.tta, progress, problems) for each in models], axis=0)
    kept = [number for number in range(len(paths)) if number not in problems]
    taxa = [taxonomy.roll_up(mean[number], inference.rollup) if taxonomy else None for number in kept]
    answers = [Prediction(paths[n], classes, mean[n], taxon) for n, taxon in zip(kept, taxa, strict=True)]
    return sets.add_to(answers) if sets else answers, [problems[number] for number in sorted(problems)]


def calibrate_sets(runs: Sequence[Path], inference: InferenceConfig, subset: str = "test") -> Any:
    """Return prediction sets, calibrated for images that are predicted in this way; None without a coverage."""
    if inference.coverage is None and not inference.by_class:
        return None
    return get(FEATURES, "conformal").load()(runs, inference, subset)


def _record_of(run: Path) -> tuple[RunRecord, Path]:
    record, file = read_record(run.parent if run.suffix == ".safetensors" else run)
    return record, file.parent


def model_file(run: Path) -> Path:
    """Return the weights of a run directory, its record.json or a model.safetensors. Raises UsageError if missing."""
    if run.suffix == ".safetensors":
        return run
    file, hint = (
        (run.parent if run.is_file() else run) / "model.safetensors",
        "pass the folder of a run, such as runs/NAME",
    )
    if not file.is_file():
        text = f"{run} is not a run: it has no model.safetensors" if run.exists() else f"run not found: {run}"
        raise missing_run(run, text, hint)
    return file


def _files(given: Path) -> list[Path]:
    if given.suffix.lower() == ".csv" and given.is_file():
        return [given.parent / row["path"] for _, row in read_rows(given, "h", boxes=True)]
    if split_path(given)[0].is_file():
        return [given]
    if not given.is_dir():
        raise UsageError(f"no such image or folder: {given}", "name images, folders, or CSVs of boxes")
    inside = (path for path in given.rglob("*") if path.is_file() and not path.is_symlink())
    found = sorted(path for path in inside if not any(is_ignored(part) for part in path.relative_to(given).parts))
    if not found:
        raise UsageError(f"the folder {given} has no files", "name another folder, or image files")
    return found
