"""The form in which frozen stages are computed: as they are, or as fast as the device can."""

from __future__ import annotations

import copy
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
"""Relative error of bfloat16 against float32 beyond which float32 is used."""

EXACT_ROWS = 16
"""Images that are computed together where bits count."""

_CHECKED_AT_ONCE = 16


@dataclass(frozen=True)
class PrefixForward:
    """The first stages of a network in some form.

    build: makes the module, `[B, 3, H, W]` in dtype to the stages' output; not called when every output is known already.
    error: relative L2 difference of bfloat16 from float32 on sample images; None where nobody asked. key: all that decides
    the stages' output, save image, view, size and form.
    """

    form: str
    dtype: torch.dtype
    build: Callable[[], nn.Module]
    error: float | None = None
    key: dict[str, Any] = field(default_factory=dict)


def exact_prefix(net: Net, depth: int) -> PrefixForward:
    """The stages as they are, in float32, and always for so many images at a time: the same bits, kept or not."""
    return PrefixForward("fp32", torch.float32, lambda: _Blocks(_stages(net, depth)))


def folded_prefix(net: Net, depth: int) -> PrefixForward:
    """In float32 with BatchNorm folded into the convolutions: the same up to rounding (about 1e-5)."""
    return PrefixForward("fp32 folded", torch.float32, lambda: _fold(copy.deepcopy(_stages(net, depth))))


def bf16_prefix(net: Net, depth: int) -> PrefixForward:
    """With BatchNorm folded into the convolutions, weights and arithmetic in bfloat16."""

    def build() -> nn.Module:
        folded = _fold(copy.deepcopy(_stages(net, depth)))
        return folded.to(torch.bfloat16).to(memory_format=torch.channels_last)

    return PrefixForward("bf16 folded", torch.bfloat16, build)


@torch.inference_mode()
def relative_error(net: Net, depth: int, sample: Tensor) -> float:
    """By how much the fast form differs from float32: relative L2 over the outputs for sample inputs `[S, 3, H, W]`."""
    exact, fast = folded_prefix(net, depth).build(), bf16_prefix(net, depth).build()
    difference = size = torch.zeros((), dtype=torch.float64, device=sample.device)
    for images in torch.split(sample, _CHECKED_AT_ONCE):  # few at a time: all of them would hold half a gigabyte more
        wanted = exact(images).float()
        difference = difference + (fast(images.to(torch.bfloat16)).float() - wanted).double().square().sum()
        size = size + wanted.double().square().sum()
    return float((difference / size.clamp(min=1e-24)).sqrt())


class Compiled(nn.Module):
    """Stages compiled by torch.compile with their weights as constants, or as they are where that fails.

    It compiles for batches of the size of the first one; smaller ones are filled up.
    """

    def __init__(self, stages: nn.Module, log: Log) -> None:
        super().__init__()
        self.stages = stages
        self._log = log
        self._rows = 0
        self._run: Callable[[Tensor], Tensor] = torch.compile(stages, dynamic=False, options={"freezing": True})

    def forward(self, inputs: Tensor) -> Tensor:
        """The stages' output for `[B, 3, H, W]`."""
        if self._run is self.stages or (self._rows and len(inputs) > self._rows):
            return self._plain(inputs)
        from torch._dynamo.exc import TorchDynamoException  # a second's import, which only this needs

        self._rows = self._rows or len(inputs)
        try:
            return self._run(_filled(inputs, self._rows))[: len(inputs)]
        except TorchDynamoException as error:
            self._log(f"torch.compile failed ({type(error).__name__}), so the frozen layers are computed without it")
            self._run = self.stages
            return self._plain(inputs)

    def _plain(self, inputs: Tensor) -> Tensor:
        made: Tensor = self.stages(inputs)
        return made


class _Blocks(nn.Module):
    """Stages computed for 16 images at a time, empty ones filled in: which bits come out hangs on how many there are."""

    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, inputs: Tensor) -> Tensor:
        """The stages' output for `[B, 3, H, W]`."""
        parts = torch.split(inputs, EXACT_ROWS)
        return torch.cat([self.stages(_filled(part, EXACT_ROWS))[: len(part)] for part in parts])


def _filled(images: Tensor, rows: int) -> Tensor:
    """Images `[B, 3, H, W]` with empty ones after them, so many in all."""
    return F.pad(images, (0,) * 7 + (rows - len(images),)).contiguous(memory_format=torch.channels_last)


def _stages(net: Net, depth: int) -> nn.Module:
    return nn.Sequential(*list(net.stages.values())[:depth]).eval()


def _fold(chain: nn.Module) -> nn.Module:
    """Each BatchNorm that follows a convolution folded into it; a chain that cannot be traced stays as it is."""
    from torch.fx.experimental.optimization import fuse

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fuse(chain)
    except (fx.proxy.TraceError, TypeError, ValueError, NotImplementedError, AttributeError):
        return chain
