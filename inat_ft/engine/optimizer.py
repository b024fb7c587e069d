"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import assert_never

import torch
from torch import nn
from torch.optim import Optimizer

from inat_ft.config import OptimConfig
from inat_ft.engine.plan import Trainable

_ROUNDING = 1e-9


def make_optimizer(learning: Trainable, config: OptimConfig, before: Optimizer | None = None) -> Optimizer:
    """Return an optimizer of just what learns, with one parameter group per learning rate and kind of decay.

    The state of parameters that already learned with `before` is taken over. Weight decay spares biases, normalization
    (He et al. 2018, arXiv 1812.01187), embeddings of positions and tokens, and layer scales, as timm's does.
    """

    def kind(pair: tuple[nn.Parameter, float]) -> tuple[float, bool]:
        return pair[1], id(pair[0]) not in learning.no_weight_decay

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
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=True)
        case "sgd":
            nesterov = config.momentum > 0
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
        case unknown:
            assert_never(unknown)


@dataclass
class Rate:
    """Sets the learning rate through an epoch that begins `since` epochs into a schedule of `epochs`."""

    optimizer: Optimizer
    config: OptimConfig
    since: int
    epochs: int
    lr: float = 0.0
    """The run's rate as last set."""

    def __call__(self, step: int, steps: int) -> None:
        """Set each group's rate for a step of an epoch of `steps`, counted from 0."""
        self.lr = self.config.lr * lr_factor(self.config, self.since + step / steps, self.epochs, 1 / steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]


def lr_factor(config: OptimConfig, epoch: float, epochs: int, step: float) -> float:
    """Return the share of the full learning rate for the step that begins at `epoch` and takes `step` epochs.

    A linear warm-up, whose last step has the full rate; then constant, or a half cosine that starts at 1 and would be 0
    after the last step, as in torch and Hugging Face's transformers. No step has a rate of 0.
    """
    warmup = min(config.warmup_epochs, epochs)
    if epoch < warmup - _ROUNDING:
        return min(1.0, (epoch + step) / warmup)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
