"""The base class of an optimizer plugin, and the built-in optimizers. Options are checked before torch is loaded."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from inat_ft.config import OptimConfig, Section

if TYPE_CHECKING:
    import torch


class Optimizer(Section):
    """Build a `torch.optim.Optimizer`. The fields of the class are its options; a string below a field is its help.

    Register the class under the entry-point group `inat_ft.optimizers`. Select it with `--optimizer NAME` and set its
    options in the section `optim`, for example `--set optim.beta1=0.95`. An option must not have the name of a key that
    `optim` already has, such as `momentum`: read that key from `config` instead.
    """

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
        """Return an optimizer of these parameter groups, with the learning rate `config.lr`.

        groups: dictionaries with `params`, `lr_scale` and `weight_decay`. Pass them unchanged to the constructor of a
        `torch.optim.Optimizer`: training sets `group["lr"]` before each step, and `weight_decay` is 0 for parameters that
        must not decay.

        The optimizer takes a step without a closure, skips parameters whose gradient is None, and keeps its state in
        `optimizer.state[parameter]` as tensors and plain numbers, so that a resumed run continues with the same values.
        """


class Adam(Optimizer):
    """Adam with L2 regularization (Kingma and Ba 2015, arXiv 1412.6980)."""

    def build(self, groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
        import torch

        return torch.optim.Adam(groups, lr=config.lr, fused=True)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    def build(self, groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups, lr=config.lr, fused=True)


class Sgd(Optimizer):
    """Stochastic gradient descent with Nesterov momentum (`optim.momentum`); momentum 0 turns it off."""

    def build(self, groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
