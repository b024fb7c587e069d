"""Exported programs of PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inat_ft.exporters import Exporter


class TorchExport(Exporter):
    """Write an exported program that `torch.export.load` reads; the metadata is in its extra files."""

    suffix = ".pt2"

    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        with warnings.catch_warnings(), BytesIO() as stream:  # torch aborts the process when it cannot write a file
            warnings.simplefilter("ignore")
            shapes = {"images": {0: torch.export.Dim("N", min=1)}}
            program = torch.export.export(network, (images,), dynamic_shapes=shapes)
            torch.export.save(program, stream, extra_files=dict(metadata))
            file.write_bytes(stream.getvalue())

    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with file.open("rb") as stream, torch.inference_mode():
            program = torch.export.load(stream)
            probabilities: NDArray[np.float32] = program.module()(torch.from_numpy(images)).numpy()
        return probabilities
