"""Modules that strategies may add to a network while it trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """Adds `scale * up @ down` to a weight of `rows` output channels; zero at the start.

    up: `[rows, rank]`; down: `[rank, columns]`, columns being the numbers behind one output channel.
    """

    def __init__(self, rows: int, columns: int, rank: int, scale: float) -> None:
        super().__init__()
        rank = min(rank, rows, columns)
        self.scale = scale
        self.up = nn.Parameter(torch.zeros(rows, rank))
        # Drawn from a generator of its own, so that the run's random numbers are those of any other strategy.
        drawn = torch.randn(rank, columns, generator=torch.Generator().manual_seed(rows * 1009 + columns))
        self.down = nn.Parameter(drawn / math.sqrt(columns))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, of the same shape."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)
