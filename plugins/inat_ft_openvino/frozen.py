"""Frozen layers in OpenVINO, converted from torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from inat_ft.cache.prefix_forward import PrefixForward, folded_prefix
from inat_ft.models.net import Net
from inat_ft.progress import Log
from inat_ft.threads import num_cores
from inat_ft_openvino.trial import Trial

_MIN_FLOPS = 1e13
"""FLOPs per core above which the trial pays: the conversion takes about five seconds."""


def faster_stages(net: Net, prefix: PrefixForward, stages: nn.Module, flops: float, log: Log) -> nn.Module:
    """Return a module that tries `stages` and OpenVINO on the first batches and continues with the faster one.

    stages: computes the first `prefix.depth` stages in torch, in `prefix.dtype`. It is returned unchanged if OpenVINO is not
    installed, if there are too few images, or in float16. flops: of all images.
    """
    if not find_spec("openvino") or flops < _MIN_FLOPS * num_cores() or prefix.dtype is torch.float16:
        return stages
    return Trial(stages, lambda images: convert(net, prefix.depth, images, prefix.dtype), log)


def convert(net: Net, depth: int, images: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
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
