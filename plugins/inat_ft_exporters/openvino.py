"""OpenVINO's intermediate representation, for Intel processors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inat_ft_exporters.folder import FolderExporter

_FILE = "model.xml"


class OpenVino(FolderExporter):
    """Write model.xml and model.bin, with the metadata in model.xml under `rt_info`, `inat_ft`."""

    suffix = ".openvino"
    requires = ("openvino",)
    install = "inat-ft[openvino]"

    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        """Write the network with a dynamic batch size and float32 weights."""
        import openvino

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = {"images": {0: torch.export.Dim("N", min=1)}}
            model = openvino.convert_model(torch.export.export(network, (images,), dynamic_shapes=shapes))
        model.inputs[0].tensor.set_names({"images"})
        model.outputs[0].tensor.set_names({"probabilities"})
        for name, value in metadata.items():
            model.set_rt_info(value, ["inat_ft", "version" if name == "inat_ft" else name])
        openvino.save_model(model, file / _FILE, compress_to_fp16=False)

    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the files in OpenVINO on the CPU."""
        import openvino

        compiled = openvino.Core().compile_model(file / _FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.asarray(compiled({"images": images})["probabilities"], np.float32)
