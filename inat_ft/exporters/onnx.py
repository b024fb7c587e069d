"""A trained network as ONNX, for programs without torch. Needs the extra `onnx`."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inat_ft import __version__
from inat_ft.data.batches import ImageInput
from inat_ft.errors import InatFtError, UsageError
from inat_ft.evaluation.predict import InferenceConfig, LoadedModel, load_model
from inat_ft.records import atomic_write

_TOLERANCE = 1e-3
_CHECKED = 3


class _FromPixels(nn.Module):
    """From pixels uint8 `[N, S, S, 3]` to probabilities float32 `[N, C]`, so that nobody has to normalise by hand."""

    def __init__(self, trained: LoadedModel) -> None:
        super().__init__()
        self.net = trained.net
        self.prepare = ImageInput(trained.preprocess.mean, trained.preprocess.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.prepare(images, torch.empty(0))).softmax(1)  # type: ignore[no-any-return]


def export_onnx(run: Path, out: Path) -> float:
    """Write the network of a run as ONNX; returns the largest difference between its probabilities and PyTorch's.

    Input `images`: uint8 `[N, S, S, 3]`, RGB, the whole image resized as in the training; output `probabilities`:
    float32 `[N, C]`. Classes and preprocessing are in the file's metadata. Raises UsageError without the packages,
    InatFtError when the network cannot be written or, run by onnxruntime, says something else.
    """
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    _import("onnxscript")
    trained = load_model(run / "model.safetensors", InferenceConfig(device="cpu"))
    module = _FromPixels(trained).eval()
    size = trained.preprocess.eval_size
    images = torch.randint(0, 256, (_CHECKED, size, size, 3), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    program = _program(module, images)
    model = program.model_proto
    said = {
        "classes": json.dumps(trained.classes),
        "preprocess": trained.preprocess.model_dump_json(),
        "inat_ft": __version__,
    }
    onnx.helper.set_model_props(model, said)
    with atomic_write(out) as temporary:
        temporary.write_bytes(model.SerializeToString())
        session = runtime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])
        (made,) = session.run(["probabilities"], {"images": images[:2].numpy()})
        with torch.inference_mode():
            error = float(np.abs(made - module(images[:2]).numpy()).max())
        if not error <= _TOLERANCE:
            raise InatFtError(
                f"ONNX output does not match PyTorch: probabilities differ by up to {error:.2g}",
                "please report this; the run itself is not affected",
            )
    return error


def _program(module: nn.Module, images: Tensor) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                module,
                (images,),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises what it likes for what it does not know
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InatFtError(f"torch cannot write this network as ONNX: {lines[0]}") from error


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UsageError(
            f"exporting needs the package {name}, which is not installed", "pip install 'inat-ft[onnx]'"
        ) from None
