"""ONNX, for ONNX Runtime and other programs without torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from inat_ft.errors import InatFtError
from inat_ft.exporters import Exporter


class Onnx(Exporter):
    """Write ONNX with an input `images` and an output `probabilities`; the metadata is in the file's properties."""

    suffix = ".onnx"
    requires = ("onnx", "onnxruntime", "onnxscript")
    install = "inat-ft[onnx]"

    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        """Write the network with a dynamic batch size. Raises InatFtError when torch cannot convert it."""
        import onnx
        import torch

        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                program = torch.onnx.export(
                    network,
                    (images,),
                    input_names=["images"],
                    output_names=["probabilities"],
                    dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
                    dynamo=True,
                    verbose=False,
                )
            except Exception as error:  # the exporter of torch has no base class for its errors
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise InatFtError(f"torch cannot write this network as ONNX: {first}") from error
        assert program is not None
        model = program.model_proto
        onnx.helper.set_model_props(model, dict(metadata))
        file.write_bytes(model.SerializeToString())

    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the file in ONNX Runtime on the CPU."""
        from onnxruntime import InferenceSession

        session = InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
        probabilities: NDArray[np.float32] = session.run(["probabilities"], {"images": images})[0]
        return probabilities
