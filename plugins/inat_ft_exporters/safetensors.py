"""The weights with their metadata, in one file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inat_ft.data.batches import ImageInput
from inat_ft.errors import UsageError
from inat_ft.evaluation.predict import SavedModel, read_model
from inat_ft.exporters import Exporter
from inat_ft.models.build import build_classifier


class Safetensors(Exporter):
    """Write the weights, under the names of the original architecture; classes and preprocessing are in the metadata.

    `inat_ft.load` and `inat-ft predict` accept the file.
    """

    suffix = ".safetensors"

    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        shutil.copyfile(saved_file(self), file)

    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        link = file.with_name(f"{file.name}.safetensors")  # the suffix tells the format
        file.rename(link)
        try:
            return predict_with_weights(read_model(link), images)
        finally:
            link.rename(file)


def saved_file(exporter: Exporter) -> Path:
    """Return the weights of the run that is exported. Raises UsageError for a network that is not from a run."""
    if exporter.run is None:
        raise UsageError("this format exports runs, and the network does not belong to one")
    return exporter.run / "model.safetensors"


def classifier_of(saved: SavedModel) -> nn.Module:
    """Return the classifier in its original architecture, with the saved weights, in evaluation mode."""
    size = saved.preprocess.image_size
    return build_classifier(saved.config, len(saved.classes), size, saved.state).eval()


def predict_with_weights(saved: SavedModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities of the saved classifier for images uint8 `[N, S, S, 3]`."""
    prepare: Any = ImageInput(saved.preprocess.mean, saved.preprocess.std)
    with torch.inference_mode():
        logits: Tensor = classifier_of(saved)(prepare(torch.from_numpy(images), torch.empty(0)))
    probabilities: NDArray[np.float32] = logits.softmax(1).numpy()
    return probabilities
