"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn
from torch.optim import Optimizer

from inat_ft.config import OptimConfig
from inat_ft.engine.plan import Learning


def make_optimizer(learning: Learning, config: OptimConfig, before: Optimizer | None = None) -> Optimizer:
    """An optimiser of just what learns, one group per learning rate and kind of decay.

    The state of parameters that already learned with `before` is taken over. Weight decay is for weights of two or more
    dimensions: biases and normalisation stay free of it (He et al. 2018, arXiv 1812.01187).
    """

    def kind(pair: tuple[nn.Parameter, float]) -> tuple[float, bool]:
        return pair[1], pair[0].ndim > 1

    groups = [
        {
            "params": [parameter for parameter, _ in pairs],
            "lr_scale": scale,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (scale, decays), pairs in groupby(sorted(learning.scales, key=kind), key=kind)
    ]
    optimizer = _make(groups, config)
    if before is not None:
        known = set(map(id, learning.parameters))
        optimizer.state.update(
            {parameter: state for parameter, state in before.state.items() if id(parameter) in known}
        )
    return optimizer


def _make(groups: list[dict[str, object]], config: OptimConfig) -> Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


@dataclass
class Rate:
    """Sets the learning rate through an epoch that begins `since` epochs into a schedule of `epochs`."""

    optimizer: Optimizer
    config: OptimConfig
    since: int
    epochs: int
    lr: float = 0.0
    """The run's rate as last set."""

    def __call__(self, share: float) -> None:
        """Set each group's rate for the moment when a share of the epoch, in 0..1, is done."""
        self.lr = self.config.lr * lr_factor(self.config, self.since + share, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]


def lr_factor(config: OptimConfig, epoch: float, epochs: int) -> float:
    """Share of the full learning rate, in 0..1: a linear warm-up, then constant or a half cosine down to 0."""
    warmup = min(config.warmup_epochs, epochs)
    if epoch < warmup:
        return epoch / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - warmup) / max(epochs - warmup, 1e-9))))
