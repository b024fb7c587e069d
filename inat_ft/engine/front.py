"""The form in which frozen stages are computed: as they are, or as fast as the device can."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from inat_ft.models.net import Net

MAX_ERROR = 0.02
"""Relative error of a fast prefix's output against float32 beyond which float32 is used."""


@dataclass(frozen=True)
class Front:
    """The first stages of a network in the form in which they are computed, and what that form costs in accuracy.

    module: `[B, 3, H, W]` in dtype to the stages' output. error: relative L2 difference of bfloat16 from float32 on sample
    images, whichever was then chosen; 0 where only float32 is possible, NaN where nobody asked.
    """

    module: nn.Module
    dtype: torch.dtype
    form: str
    error: float


def exact_front(net: Net, prefix: int) -> Front:
    """The stages as they are, in float32: the same bits as in the network itself."""
    return Front(nn.Sequential(*list(net.stages.values())[:prefix]).eval(), torch.float32, "fp32", 0.0)


def folded_front(net: Net, prefix: int) -> Front:
    """The stages in float32 with BatchNorm folded into the convolutions: the same up to rounding (about 1e-5)."""
    return Front(_fold(copy.deepcopy(exact_front(net, prefix).module)), torch.float32, "fp32 folded", 0.0)


def fast_front(net: Net, prefix: int, sample: Tensor, forced: bool = False) -> Front:
    """The stages with BatchNorm folded into the convolutions, weights and arithmetic in bfloat16.

    sample: `[S, 3, H, W]` float32 inputs on which the result is held against float32: when the relative error exceeds
    MAX_ERROR, the form in float32 is returned instead, unless `forced`.
    """
    folded = folded_front(net, prefix)
    module = copy.deepcopy(folded.module).to(torch.bfloat16).to(memory_format=torch.channels_last)
    if forced:
        return Front(module, torch.bfloat16, "bf16 folded", math.nan)
    with torch.inference_mode():
        wanted = folded.module(sample).float()
        got = module(sample.to(torch.bfloat16)).float()
    error = float((got - wanted).norm() / wanted.norm().clamp(min=1e-12))
    if error > MAX_ERROR:
        return replace(folded, error=error)
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
