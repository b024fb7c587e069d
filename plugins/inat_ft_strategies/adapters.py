"""Low-rank adapters that a strategy adds to a network during training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class LowRank(nn.Module):
    """Parametrization that adds `scale * up @ down` to a weight flattened to `[outputs, columns]`.

    up: `[outputs, rank]`, initially zero; down: `[rank, columns]`, drawn from the seed. Both have the device and dtype of
    the weight.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, seed: int) -> None:
        super().__init__()
        outputs, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, outputs, columns)
        self.scale = scale
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        # A separate generator leaves the random numbers of the run unchanged.
        drawn = torch.randn(rank, columns, generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter((drawn / math.sqrt(columns)).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, of the same shape."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_adapters(stage: nn.Module, rank: int, scale: float, seed: int) -> int:
    """Add a LowRank adapter to each weight matrix of a stage, and return the number of adapters.

    Weight matrices are the weights of Linear layers and ungrouped convolutions, and the query, key and value matrices of
    nn.MultiheadAttention. The initial values depend on the seed and on the name of the weight. Weights that already have a
    parametrization, such as a weight norm, are skipped.
    """
    added = 0
    for path, module in list(stage.named_modules()):
        for name in _matrices(module):
            if not parametrize.is_parametrized(module, name):
                adapter = LowRank(getattr(module, name), rank, scale, _seed_of(seed, f"{path}.{name}"))
                parametrize.register_parametrization(module, name, adapter)
                added += 1
    return added


def merge_adapters(net: nn.Module) -> None:
    """Add every LowRank adapter to its weight, and remove the adapter."""
    for module in list(net.modules()):
        for name in [name for name in _matrices(module) if parametrize.is_parametrized(module, name)]:
            if isinstance(module.parametrizations[name][0], LowRank):  # type: ignore[index]  # an attribute of a module
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def adapter_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all LowRank adapters."""
    return [parameter for module in net.modules() if isinstance(module, LowRank) for parameter in module.parameters()]


def _matrices(module: nn.Module) -> Iterator[str]:
    """Yield the names of a module's parameters that get an adapter."""
    if isinstance(module, nn.MultiheadAttention):  # its output projection is a Linear
        yield from (name for name in _ATTENTION_WEIGHTS if getattr(module, name) is not None)
    elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        yield "weight"


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big")
