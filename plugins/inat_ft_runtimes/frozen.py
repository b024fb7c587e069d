"""Frozen layers in other runtimes, converted from torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from inat_ft.cache.prefix_forward import PrefixForward, folded_prefix
from inat_ft.models.net import Net
from inat_ft.progress import Log
from inat_ft.threads import num_cores
from inat_ft_runtimes.trial import Forward, Trial

_MIN_FLOPS = 5e12
"""FLOPs per core and runtime above which the trial pays: each conversion takes about three seconds."""


def faster_stages(net: Net, prefix: PrefixForward, stages: nn.Module, flops: float, log: Log) -> nn.Module:
    """Return a module that tries `stages` and the installed runtimes on the first batches and continues with the fastest.

    stages: computes the first `prefix.depth` stages in torch, in `prefix.dtype`. It is returned unchanged if no runtime for
    this dtype is installed, or if there are too few images. flops: of all images.
    """
    found = {
        name: partial(convert, net, prefix.depth, prefix.dtype)
        for name, (packages, convert, dtypes) in RUNTIMES.items()
        if prefix.dtype in dtypes and all(map(find_spec, packages))
    }
    return Trial(stages, found, log) if found and flops >= _MIN_FLOPS * num_cores() * len(found) else stages


def to_openvino(net: Net, depth: int, dtype: torch.dtype, images: Tensor) -> Forward:
    """Convert the first stages to OpenVINO; return a function from `[B, 3, H, W]` to their output, both in `dtype`.

    images: a batch. The function computes in `dtype`, float32 or bfloat16, for any batch size, with as many threads as torch.
    """
    import openvino

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        model = openvino.convert_model(
            torch.export.export(folded_prefix(net, depth).build(), (torch.zeros(images.shape),), dynamic_shapes=shapes)
        )
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype is torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(inputs: Tensor) -> Tensor:
        output = request.infer({0: inputs.float().contiguous().numpy()}, share_inputs=True)[0]
        return torch.from_numpy(output).to(dtype)

    return run


def to_onnx_runtime(net: Net, depth: int, dtype: torch.dtype, images: Tensor) -> Forward:
    """Convert the first stages to ONNX Runtime; return a function from `[B, 3, H, W]` to their output, both float32.

    images: a batch. The function takes any batch size and uses as many threads as torch, which sleep while they wait.
    """
    from onnxruntime import InferenceSession, SessionOptions

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            folded_prefix(net, depth).build(),
            (torch.zeros(images.shape),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    settings = SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = InferenceSession(program.model_proto.SerializeToString(), settings, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: inputs.contiguous().numpy()})[0])

    return run


Convert = Callable[[Net, int, torch.dtype, Tensor], Forward]
RUNTIMES: dict[str, tuple[tuple[str, ...], Convert, tuple[torch.dtype, ...]]] = {
    "OpenVINO": (("openvino",), to_openvino, (torch.float32, torch.bfloat16)),
    "ONNX Runtime": (("onnx", "onnxruntime", "onnxscript"), to_onnx_runtime, (torch.float32,)),
}
"""The packages that each runtime needs, its conversion, and the dtypes in which it computes on a CPU."""
