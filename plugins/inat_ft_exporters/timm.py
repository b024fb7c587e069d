"""Folders that timm and transformers load: weights and a config.json in timm's form."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from inat_ft.errors import UsageError
from inat_ft.evaluation.predict import SavedModel, read_model
from inat_ft.models.base import Preprocess
from inat_ft.models.weights import read_metadata
from inat_ft_exporters.folder import FolderExporter
from inat_ft_exporters.safetensors import classifier_of, saved_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_CROP_MODES = {"squash": "squash", "crop": "center", "pad": "border"}
_CROP_MARGIN = 256 / 224
_COPIED = ("fixed_input_size", "first_conv", "classifier")


class TimmModel(NamedTuple):
    """A classifier that timm builds with `timm.create_model(architecture, **options)`, with its weights."""

    module: Any
    options: dict[str, Any]


class Timm(FolderExporter):
    """Write config.json and model.safetensors for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

    suffix = ".timm"
    requires = ("timm",)
    install = "inat-ft[timm]"

    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        """Write the folder. Raises UsageError if timm does not have the architecture."""
        source = saved_file(self)
        saved = read_model(source)
        found = find_architecture(saved)
        if found is None:
            raise UsageError(
                f"timm has no architecture with the weights of {saved.config.backbone}",
                "use another format: --format onnx, torch-export, openvino, safetensors or hub-folder",
            )
        write_timm_folder(file, found, saved, source)

    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Load the folder as timm does, and normalize with the values of config.json."""
        return predict_with_timm(file, images)


def find_architecture(saved: SavedModel) -> TimmModel | None:
    """Return timm's model with the saved weights; None if timm does not have the architecture.

    A torchvision network is looked up by its name: timm's ResNets and DenseNets have the same weights, for example.
    """
    import timm

    classifier = classifier_of(saved)
    own: Any = getattr(classifier, "pretrained_cfg", {})
    name = own.get("architecture") or saved.config.backbone
    if not timm.is_model(name):
        return None
    tagged = f"{name}.{own['tag']}" if own.get("tag") else name
    known, size = timm.get_pretrained_cfg(tagged), saved.preprocess.image_size
    is_other_size = known and known.fixed_input_size and known.input_size[-1] != size
    options = {"img_size": size} if is_other_size else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside timm
        module = timm.create_model(tagged, num_classes=len(saved.classes), **options)
    try:
        module.load_state_dict(classifier.state_dict())
    except RuntimeError:  # the same name for another architecture
        return None
    return TimmModel(module, options)


def write_timm_folder(folder: Path, model: TimmModel, saved: SavedModel, source: Path) -> None:
    """Write the weights and config.json of a timm model. source: the saved weights, whose metadata are kept."""
    state = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    is_same = all(state[name].shape == tensor.shape for name, tensor in saved.state.items())
    save_file(state, folder / WEIGHTS, read_metadata(source) if is_same else {"format": "pt"})
    cfg = model.module.pretrained_cfg
    config = {
        "architecture": cfg["architecture"],
        "num_classes": len(saved.classes),
        "num_features": model.module.num_features,
        "label_names": list(saved.classes),
        **({"model_args": model.options} if model.options else {}),
        "pretrained_cfg": {
            **{key: cfg[key] for key in _COPIED if cfg.get(key) is not None},
            "custom_load": False,
            "num_classes": len(saved.classes),
            **_input_config(saved.preprocess),
        },
    }
    write_json(folder / CONFIG, config)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a dictionary as JSON."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _input_config(preprocess: Preprocess) -> dict[str, Any]:
    """Return the preprocessing in timm's terms. timm pads with the mean color."""
    size = preprocess.eval_size
    margin = size / (round(size * _CROP_MARGIN) + 0.5) if preprocess.resize == "crop" else 1.0  # timm rounds down
    return {
        "input_size": [3, size, size],
        "interpolation": preprocess.interpolation,
        "crop_mode": _CROP_MODES[preprocess.resize],
        "crop_pct": preprocess.crop_pct or margin,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }


def predict_with_timm(folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities of the model that timm loads from the folder."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    inputs = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        probabilities: NDArray[np.float32] = model(inputs).softmax(1).numpy()
    return probabilities
