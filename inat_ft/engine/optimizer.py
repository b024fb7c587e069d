"""The optimizer of one phase of training and its learning-rate schedule."""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn
from torch.optim import Optimizer

from inat_ft.config import OptimConfig, build_optimizer
from inat_ft.engine.plan import Trainable
from inat_ft.errors import PluginError
from inat_ft.optim import Optimizer as OptimizerPlugin
from inat_ft.registry import OPTIMIZERS, call_plugin, plugin_label

_ROUNDING = 1e-9


def make_optimizer(
    trainable: Trainable, config: OptimConfig, previous: Optimizer | None = None, plugin: OptimizerPlugin | None = None
) -> Optimizer:
    """Return an optimizer of the trainable parameters, in one group per learning rate and weight decay.

    previous: the optimizer of the previous phase; its state is kept for parameters that are still trainable. plugin:
    default is the one that the configuration names. Biases, normalization (He et al. 2018, arXiv 1812.01187), position
    embeddings, tokens and layer scales have no weight decay, as in timm. Raises PluginError when the plugin breaks its
    contract.
    """

    def kind(pair: tuple[nn.Parameter, float]) -> tuple[float, bool]:
        return pair[1], pair[0] not in trainable.no_weight_decay

    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter, _ in pairs],
            "lr_scale": scale,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (scale, decays), pairs in groupby(sorted(trainable.scales.items(), key=kind), key=kind)
    ]
    expected = [_describe(group) for group in groups]
    plugin = plugin or build_optimizer(config)
    optimizer = call_plugin(plugin.build, groups, config)
    name = plugin_label(OPTIMIZERS, type(plugin))
    if not isinstance(optimizer, Optimizer):
        raise PluginError(f"{name} breaks the contract: build() must return a torch.optim.Optimizer, not {optimizer!r}")
    if [_describe(group) for group in optimizer.param_groups] != expected:
        raise PluginError(f"{name} breaks the contract: build() must keep the parameter groups as they are")
    if previous is not None:
        optimizer.state.update({p: state for p, state in previous.state.items() if p in trainable.scales})
    return optimizer


def _describe(group: dict[str, Any]) -> tuple[list[int], Any, Any]:
    return list(map(id, group["params"])), group.get("lr_scale"), group.get("weight_decay")


@dataclass
class LRScheduler:
    """Set the learning rate before each step of an epoch that starts `since` epochs into a schedule of `epochs`."""

    optimizer: Optimizer
    config: OptimConfig
    since: int
    epochs: int
    lr: float = 0.0
    """The learning rate of the last step, before `lr_scale`."""

    def __call__(self, step: int, steps: int) -> None:
        """Set the learning rate of each group for a step, counted from 0, of an epoch of `steps` steps."""
        self.lr = self.config.lr * lr_factor(self.config, self.since + step / steps, self.epochs, 1 / steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]


def lr_factor(config: OptimConfig, epoch: float, epochs: int, step: float) -> float:
    """Return the factor, above 0 and at most 1, on the learning rate of the step that starts at `epoch`.

    step: length of the step in epochs. A linear warm-up reaches 1 at its last step. After it, the factor is constant or
    follows half a cosine that would reach 0 after the last step, as in torch and Hugging Face Transformers.
    """
    warmup = min(config.warmup_epochs, epochs)
    if epoch < warmup - _ROUNDING:
        return min(1.0, (epoch + step) / warmup)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
