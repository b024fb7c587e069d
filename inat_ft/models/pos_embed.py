"""Resample the position embeddings of vision transformers for another image size."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_MAX_EXTRA_TOKENS = 8


def fit_positions(name: str, given: Tensor, wanted: torch.Size) -> Tensor:
    """Return a position embedding `[1, E + S*S, D]` resampled to the wanted shape (Dosovitskiy et al. 2021, section 3.2).

    The first E rows belong to class and register tokens and do not change. Other tensors are returned unchanged.
    """
    is_embedding = "pos_embed" in name and given.ndim == len(wanted) == 3 and given.shape[2] == wanted[2]
    if not is_embedding or given.shape == wanted:
        return given
    for extra in range(min(_MAX_EXTRA_TOKENS, given.shape[1] - 1, wanted[1] - 1) + 1):
        side, new = math.isqrt(given.shape[1] - extra), math.isqrt(wanted[1] - extra)
        if side**2 + extra == given.shape[1] and new**2 + extra == wanted[1]:
            grid = given[:, extra:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True)
            return torch.cat([given[:, :extra], grid.flatten(2).transpose(1, 2)], 1)
    return given
