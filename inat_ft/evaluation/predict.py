"""A trained model on images, with the same preprocessing as in training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from inat_ft.config import ModelConfig
from inat_ft.data.batches import Batches, ImageFiles, ImageInput
from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.data.verify import verify_hashes
from inat_ft.engine.device import Compute, choose_compute
from inat_ft.engine.loops import evaluate
from inat_ft.errors import DataError, RecordError, UsageError, WeightsError
from inat_ft.metrics.predictions import Predictions, from_probabilities
from inat_ft.models.base import Preprocess
from inat_ft.models.build import build_net, check_input_size
from inat_ft.models.net import Net
from inat_ft.models.weights import read_metadata, read_state
from inat_ft.progress import ProgressFn, ignore_progress, no_progress
from inat_ft.records import RunRecord
from inat_ft.settings import expand_user
from inat_ft.threads import decoders

_BATCH = 64


@dataclass(frozen=True)
class InferenceConfig:
    """How a trained model is run.

    device, precision: as in training. tta: test-time augmentation: none, or flip (mean over the image and its mirror image).
    image_size: height and width in pixels; default: those of the model.
    """

    device: str = "auto"
    precision: str = "fp32"
    tta: str = "none"
    image_size: int | None = None


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


def read_model(file: Path) -> SavedModel:
    """Read a model.safetensors. Raises RecordError if it is missing, WeightsError if it cannot be used."""
    if not file.is_file():
        raise RecordError(f"the run has no {file.name}: {file} is missing", "train it again, or restore the file")
    state, metadata = read_state(file), read_metadata(file)
    try:
        return SavedModel(
            state,
            ModelConfig.model_validate_json(metadata["model"]),
            Preprocess.model_validate_json(metadata["preprocess"]),
            tuple(json.loads(metadata["classes"])),
        )
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{file} does not describe its network: {error}", "name the model.safetensors of a run"
        ) from error


def load_trained_model(file: Path, compute: Compute, image_size: int | None = None) -> LoadedModel:
    """Return the network of a model.safetensors; image_size overrides its image size for evaluation.

    Raises RecordError or WeightsError as `read_model` does, ConfigError when the network does not support the size.
    """
    saved = read_model(file)
    preprocess = saved.preprocess
    net = build_net(saved.config, len(saved.classes), preprocess.image_size, seed=0)
    net.load_original_state_dict(saved.state, str(file))
    net.eval().to(compute.device).to(memory_format=torch.channels_last)
    if image_size is not None:
        check_input_size(net, image_size, preprocess.image_size)
        preprocess = preprocess.model_copy(update={"eval_image_size": image_size})
    return LoadedModel(net, saved.classes, preprocess, compute)


def load_model(file: Path, inference: InferenceConfig) -> LoadedModel:
    """Load a model onto the chosen device. Raises UsageError when the device is not available."""
    return load_trained_model(file, choose_compute(inference.device, inference.precision), inference.image_size)


def predict_files(
    trained: LoadedModel,
    paths: Sequence[Path],
    tta: str,
    progress: ProgressFn,
    problems: dict[int, DataError] | None = None,
    hashes: Sequence[str] | None = None,
) -> Tensor:
    """Return probabilities `[N, C]`, float64 on the CPU. tta: none, or flip.

    problems: collects the errors of images that cannot be decoded, whose rows are then invalid; without it they are raised
    as DataError. hashes: SHA-256 in hex that each file must have when it is read.
    """
    prepare = ImageInput(trained.preprocess.mean, trained.preprocess.std)
    labels = torch.zeros(len(paths), dtype=torch.int64, device=trained.compute.device)
    done = 0

    def prepare_and_count(rows: Tensor, numbers: Tensor) -> Tensor:
        nonlocal done
        done += len(rows)
        progress(done, len(paths))
        return prepare(rows, numbers)

    with decoders() as pool:
        source = ImageFiles(paths, trained.preprocess.eval_size, pool, problems, trained.preprocess.resizing, hashes)
        shares = _probabilities(trained, Batches(source, labels, _BATCH, prepare_and_count))
        if tta == "flip":
            mirrored = Batches(source, labels, _BATCH, lambda rows, numbers: prepare(rows.flip(2), numbers))
            shares = (shares + _probabilities(trained, mirrored)) / 2
    return shares


def _probabilities(trained: LoadedModel, batches: Batches) -> Tensor:
    """Return probabilities `[N, C]`, float64 on the CPU. Raises WeightsError when a logit is not finite."""
    logits = evaluate(trained.net, batches, trained.compute)[2].cpu().double()
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
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
    """Return a run's predictions on a subset of its manifest, and the manifest with the current hashes.

    root: folder of the images, if they have moved. Raises RecordError when the manifest has changed, UsageError when the
    subset is empty, DataError when its files have changed, unless the run was told to ignore that.
    """
    manifest = manifest_of(record, directory, root)
    rows = manifest.rows(subset)
    if not len(rows):
        raise UsageError(
            f"{manifest.path} has no {subset} images",
            "reserve some and train again: inat-ft split DATA --test-fraction 0.2",
        )
    hashes_now = verify_hashes(manifest, (subset,), None, changes_allowed(record), no_progress)
    manifest = replace(manifest, hashes=hashes_now)
    paths, hashes = ([column[row] for row in rows] for column in (manifest.paths, manifest.hashes))
    shares = predict_files(trained, [manifest.root / path for path in paths], tta, progress, hashes=hashes)
    return from_probabilities(trained.classes, paths, hashes, manifest.labels[rows], shares.numpy()), manifest


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
        raise RecordError(
            f"{path} has changed since '{record.name}' was trained with it",
            "train again on the new split, or restore the old manifest",
        )
    return manifest
