"""Folders for the Hugging Face Hub: weights, config.json, and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from inat_ft.evaluation.predict import read_model
from inat_ft.records import read_record
from inat_ft_exporters.folder import FolderExporter
from inat_ft_exporters.safetensors import predict_with_weights, saved_file
from inat_ft_exporters.timm import (
    CONFIG,
    WEIGHTS,
    find_architecture,
    predict_with_timm,
    write_json,
    write_timm_folder,
)

_FIGURES = ("curves.png", "confusion-val.png", "confusion-test.png")


class HubFolder(FolderExporter):
    """Write a repository of the Hub: the files of the format timm, README.md, and the figures of the run.

    If timm does not have the architecture, only inat-ft loads the weights, and the model card says so.
    """

    suffix = ".hub"
    requires = ("timm",)
    install = "inat-ft[hub]"

    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        source = saved_file(self)
        saved = read_model(source)
        model = find_architecture(saved)
        if model is not None:
            write_timm_folder(file, model, saved, source)
        else:
            shutil.copyfile(source, file / WEIGHTS)
            own = {
                "library_name": "inat-ft",
                "backbone": saved.config.backbone,
                "num_classes": len(saved.classes),
                "label_names": list(saved.classes),
                "preprocess": saved.preprocess.model_dump(),
            }
            write_json(file / CONFIG, own)
        _copy_card(source.parent, file, in_timm=model is not None)

    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Load the folder as timm does, or with inat-ft if timm does not have the architecture."""
        if "architecture" in json.loads((file / CONFIG).read_text(encoding="utf-8")):
            return predict_with_timm(file, images)
        return predict_with_weights(read_model(file / WEIGHTS), images)


def _copy_card(run: Path, folder: Path, in_timm: bool) -> None:
    """Write the model card of a run, or copy it if it was edited, and copy the figures."""
    from inat_ft_run_files.card import write_card
    from inat_ft_run_files.results import evaluated, validation

    for name in _FIGURES:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    card = folder / "README.md"
    if (run / card.name).is_file():
        shutil.copyfile(run / card.name, card)
    file = run / "record.json"
    if file.is_file():
        record = read_record(file)[0]
        results = (evaluated(record, "val") or validation(record, run), evaluated(record, "test"))
        write_card(record, [each for each in results if each is not None], card, in_timm)
