"""The form in which frozen stages are computed: as they are, or as fast as the device can."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from inat_ft.models.net import Net

MAX_ERROR = 0.02
"""Relative error of a fast prefix's output against float32 beyond which float32 is used."""


@dataclass(frozen=True)
class Front:
    """The first stages of a network in the form in which they are computed, and what that form costs in accuracy.

    module: float32 `[B, 3, H, W]` to the stages' output, float32 or bfloat16. error: relative L2 difference from plain
    float32 on sample images; 0 when the form is plain float32.
    """

    module: nn.Module
    dtype: torch.dtype
    form: str
    error: float


def exact_front(net: Net, prefix: int) -> Front:
    """The stages as they are, in float32: the same bits as in the network itself."""
    return Front(nn.Sequential(*list(net.stages.values())[:prefix]).eval(), torch.float32, "fp32", 0.0)


def fast_front(net: Net, prefix: int, sample: Tensor, forced: bool = False) -> Front:
    """The stages with BatchNorm folded into the convolutions, weights and arithmetic in bfloat16.

    sample: `[S, 3, H, W]` float32 inputs on which the result is held against plain float32: when the relative error
    exceeds MAX_ERROR, the exact form is returned instead, unless `forced`.
    """
    exact = exact_front(net, prefix)
    module = _fold(copy.deepcopy(exact.module)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = exact.module(sample).float()
        got = module(sample.to(torch.bfloat16)).float()
    error = float((got - wanted).norm() / wanted.norm().clamp(min=1e-12))
    if error > MAX_ERROR and not forced:
        return Front(exact.module, torch.float32, f"fp32, since bf16 would be off by {error:.1%}", 0.0)
    return Front(module, torch.bfloat16, "bf16 folded", error)


def _fold(chain: nn.Module) -> nn.Module:
    """Each BatchNorm that follows a convolution folded into it; a chain that cannot be traced stays as it is."""
    from torch.fx.experimental.optimization import fuse

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fuse(chain)
    except (fx.proxy.TraceError, TypeError, ValueError, NotImplementedError, AttributeError):
        return chain
