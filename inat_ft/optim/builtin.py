"""The optimizers that come with inat-ft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inat_ft.config import OptimConfig
from inat_ft.optim.base import Optimizer

if TYPE_CHECKING:
    import torch


class Adam(Optimizer):
    """Adam with L2 regularization (Kingma and Ba 2015, arXiv 1412.6980)."""

    def build(self, groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
        """Return a fused `torch.optim.Adam`."""
        import torch

        return torch.optim.Adam(groups, lr=config.lr, fused=True)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    def build(self, groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
        """Return a fused `torch.optim.AdamW`."""
        import torch

        return torch.optim.AdamW(groups, lr=config.lr, fused=True)


class Sgd(Optimizer):
    """Stochastic gradient descent with Nesterov momentum (`optim.momentum`)."""

    def build(self, groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
        """Return a fused `torch.optim.SGD`; momentum 0 turns Nesterov momentum off."""
        import torch

        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
