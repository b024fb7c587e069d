"""The forward pass of the frozen stages: exact, with folded BatchNorm, in reduced precision, or compiled."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from inat_ft.models.net import Net
from inat_ft.progress import Log

MAX_ERROR = 0.02
"""Relative error of reduced precision above which float32 is used."""

EXACT_ROWS = 16
"""Batch size of the exact form."""

_CHECKED_AT_ONCE = 16


@dataclass(frozen=True)
class PrefixForward:
    """One way to compute the first `depth` stages of a network.

    build: returns the module, from `[B, 3, H, W]` in `dtype` to the output of the stages; it is not called if all outputs
    are cached. errors: relative L2 errors on sample images, by precision, as far as they were measured. key: everything that
    decides the output except the image, the view, the size and `form`.
    """

    form: str
    depth: int
    dtype: torch.dtype
    build: Callable[[], nn.Module]
    errors: dict[str, float] = field(default_factory=dict)
    key: dict[str, Any] = field(default_factory=dict)


def exact_prefix(net: Net, depth: int) -> PrefixForward:
    """Return the stages unchanged, in float32 and with a fixed batch size: equal images have equal outputs."""
    return PrefixForward("fp32", depth, torch.float32, lambda: _FixedBatches(_stages(net, depth)))


def folded_prefix(net: Net, depth: int) -> PrefixForward:
    """Return the stages in float32 with BatchNorm folded into the convolutions; the rounding error is about 1e-5."""
    return PrefixForward("fp32 folded", depth, torch.float32, lambda: _fold(copy.deepcopy(_stages(net, depth))))


def reduced_prefix(net: Net, depth: int, dtype: torch.dtype) -> PrefixForward:
    """Return the stages in float16 or bfloat16 with BatchNorm folded into the convolutions."""

    def build() -> nn.Module:
        stages = _fold(copy.deepcopy(_stages(net, depth))).to(dtype).to(memory_format=torch.channels_last)
        return _out_of_place(stages)

    return PrefixForward("fp16 folded" if dtype == torch.float16 else "bf16 folded", depth, dtype, build)


def relative_error(net: Net, depth: int, dtype: torch.dtype, sample: Callable[[], Tensor]) -> float:
    """Return the relative L2 error of reduced precision for sample inputs `[S, 3, H, W]`; NaN after an overflow."""
    exact, fast = folded_prefix(net, depth).build(), reduced_prefix(net, depth, dtype).build()
    difference = size = 0.0
    with torch.inference_mode():
        for images in torch.split(sample(), _CHECKED_AT_ONCE):  # small batches limit the memory
            reference = exact(images).float()
            difference += float(torch.linalg.vector_norm(fast(images.to(dtype)).float() - reference)) ** 2
            size += float(torch.linalg.vector_norm(reference)) ** 2
    return math.sqrt(difference / max(size, 1e-24))


def _out_of_place(stages: nn.Module) -> nn.Module:
    """Replace in-place activations. In reduced precision on a CPU, they take up to three times as long as others."""
    for module in stages.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # an attribute of a module
    return stages


class Compiled(nn.Module):
    """Stages that torch.compile compiles with constant weights; if that fails, they run uncompiled.

    They are compiled for the size of the first batch. Smaller batches are padded.
    """

    def __init__(self, plain: nn.Module, log: Log) -> None:
        super().__init__()
        self.plain = plain
        self._log = log
        self._rows = 0
        self._run: Callable[[Tensor], Tensor] = torch.compile(plain, dynamic=False, options={"freezing": True})

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the stages for `[B, 3, H, W]`."""
        if self._run is not self.plain and len(inputs) <= (self._rows or len(inputs)):
            from torch._dynamo.exc import TorchDynamoException  # takes a second to import

            self._rows = self._rows or len(inputs)
            try:
                return self._run(_padded(inputs, self._rows))[: len(inputs)]
            except TorchDynamoException as error:
                self._log(f"torch.compile failed ({type(error).__name__}), so the frozen layers run uncompiled")
                self._run = self.plain
        outputs: Tensor = self.plain(inputs)
        return outputs


class _FixedBatches(nn.Module):
    """Stages computed for 16 images at a time: the exact bits of the output depend on the batch size."""

    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the stages for `[B, 3, H, W]`."""
        parts = torch.split(inputs, EXACT_ROWS)
        return torch.cat([self.stages(_padded(part, EXACT_ROWS))[: len(part)] for part in parts])


def _padded(images: Tensor, rows: int) -> Tensor:
    """Return images `[B, 3, H, W]` followed by black ones, `rows` in all."""
    return F.pad(images, (0,) * 7 + (rows - len(images),)).contiguous(memory_format=torch.channels_last)


def _stages(net: Net, depth: int) -> nn.Module:
    return nn.Sequential(*list(net.stages.values())[:depth]).eval()


def _fold(stages: nn.Module) -> nn.Module:
    """Fold each BatchNorm into the convolution before it; return stages that torch.fx cannot trace unchanged."""
    from torch.fx.experimental.optimization import fuse

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fuse(stages)
    # torch.fx runs the code of the network on proxies, and raises these where the code depends on values or shapes.
    except (fx.proxy.TraceError, TypeError, ValueError, NotImplementedError, AttributeError):
        return stages
