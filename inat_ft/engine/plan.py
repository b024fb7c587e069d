"""The training plan: what is trainable in each epoch, as the strategy answers before training."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter

from torch import nn

from inat_ft.errors import PluginError
from inat_ft.models.net import Net
from inat_ft.registry import STRATEGIES, plugin_errors, plugin_label
from inat_ft.strategies.base import Group, Strategy


@dataclass(frozen=True)
class Trainable:
    """The trainable parameters of one epoch with their factors on the learning rate, and those without weight decay."""

    scales: Mapping[nn.Parameter, float]
    no_weight_decay: frozenset[nn.Parameter] = frozenset()


@dataclass(frozen=True)
class TrainingPlan:
    """What is trainable in each epoch. Epochs are counted from 0."""

    net: Net
    epochs: tuple[Trainable, ...]

    @cached_property
    def trainable_ids(self) -> frozenset[int]:
        """Ids of the parameters that are trained in at least one epoch."""
        return frozenset(id(parameter) for epoch in self.epochs for parameter in epoch.scales)

    @cached_property
    def num_trainable(self) -> int:
        """Number of values in these parameters."""
        return sum(parameter.numel() for parameter in self.net.parameters() if id(parameter) in self.trainable_ids)

    @cached_property
    def _prefixes(self) -> list[int]:
        """Number of leading frozen stages, by epoch."""
        stages: dict[nn.Parameter, int] = {}
        for number, stage in enumerate(self.net.stages.values()):
            for parameter in stage.parameters():
                stages.setdefault(parameter, number)
        num_stages = len(self.net.stages)
        return [min(stages.get(parameter, num_stages) for parameter in epoch.scales) for epoch in self.epochs]

    @cached_property
    def _shortest_prefixes(self) -> list[int]:
        return list(accumulate(self._prefixes, min))

    @cached_property
    def _thaws(self) -> list[int]:
        """The next epoch with a shorter frozen prefix, by epoch; the number of epochs if there is none."""
        found, waiting = [len(self.epochs)] * len(self.epochs), list[int]()
        for epoch, prefix in enumerate(self._prefixes):
            while waiting and self._prefixes[waiting[-1]] > prefix:
                found[waiting.pop()] = epoch
            waiting.append(epoch)
        return found

    @cached_property
    def _last_trained_epoch(self) -> list[list[int]]:
        """Answers of `last_trained_epoch` by epoch, then by length of the prefix."""
        rows = [[0] * (len(self.net.stages) + 1)]
        for number, first in enumerate(self._prefixes, 1):
            rows.append([number if first < length else last for length, last in enumerate(rows[-1])])
        return rows

    @cached_property
    def phases(self) -> list[tuple[int, int]]:
        """First and last (excluded) epoch of each series of epochs with the same trainable parameters and rates."""
        changed = (number for number, (before, after) in enumerate(pairwise(self.epochs), 1) if before != after)
        return list(pairwise([0, *changed, len(self.epochs)]))

    def frozen_prefix(self, epoch: int, since_start: bool = False) -> int:
        """Return the number of leading stages that are frozen in an epoch; since_start: and in all epochs before it."""
        return self._shortest_prefixes[epoch] if since_start else self._prefixes[epoch]

    def last_trained_epoch(self, prefix: int, epoch: int) -> int:
        """Return the last epoch before this one, counted from 1, that trains a part of the prefix; 0 if there is none.

        While this number stays the same, a frozen prefix returns the same output for an image.
        """
        return self._last_trained_epoch[epoch][prefix]

    def epochs_until_thaw(self, epoch: int) -> int:
        """Return for how many epochs, including this one, the frozen prefix is at least as long as in this one."""
        return self._thaws[epoch] - epoch

    def starts_phase(self, epoch: int) -> bool:
        """Return whether other parameters or learning rates are used than in the epoch before."""
        return epoch > 0 and self.phase(epoch)[0] == epoch

    def phase(self, epoch: int) -> tuple[int, int]:
        """Return the phase of an epoch."""
        return self.phases[bisect_right(self.phases, epoch, key=itemgetter(0)) - 1]

    def trainable_state_names(self) -> list[str]:
        """Return the names, in the state dict of the network, of all tensors that training may change."""
        return self._state_names

    @cached_property
    def _state_names(self) -> list[str]:
        names = {name for name, parameter in self.net.named_parameters() if id(parameter) in self.trainable_ids}
        for path, module in self.net.named_modules():
            if any(id(parameter) in self.trainable_ids for parameter in module.parameters(recurse=False)):
                names |= {f"{path}.{name}" for name, _ in module.named_buffers(recurse=False)}
        return [name for name in self.net.state_dict() if name in names]


def make_plan(strategy: Strategy, net: Net, epochs: int, layer_decay: float = 1.0) -> TrainingPlan:
    """Ask the strategy for the parameter groups of all epochs.

    layer_decay: factor on the learning rate for each layer (block) further from the head, as in timm. Raises PluginError
    that names the strategy when it breaks its contract.
    """
    last = max(net.layer_ids.values(), default=0)
    factors = {p: layer_decay ** (last - _layer(net, net.original_name(name))) for name, p in net.named_parameters()}
    no_weight_decay = frozenset(
        parameter
        for name, parameter in net.named_parameters()
        if parameter.ndim <= 1 or net.original_name(name) in net.no_weight_decay
    )
    scales = (_scales(strategy, net, epoch, factors) for epoch in range(epochs))
    return TrainingPlan(net, tuple(Trainable(each, no_weight_decay) for each in scales))


def _layer(net: Net, name: str) -> int:
    """Return the layer of a parameter. Parameters that a strategy adds, such as adapters, belong to their module's layer."""
    if name in net.layer_ids:
        return net.layer_ids[name]
    module = name.rpartition(".")[0]
    near = [layer for known, layer in net.layer_ids.items() if known.startswith(f"{module}.")]
    return max(near) if near else _layer(net, module) if module else 0


def _scales(
    strategy: Strategy, net: Net, epoch: int, factors: Mapping[nn.Parameter, float]
) -> dict[nn.Parameter, float]:
    """Return the trainable parameters of an epoch and their factors, in the order of the network."""
    name = plugin_label(STRATEGIES, type(strategy))
    with plugin_errors(STRATEGIES, type(strategy), f"groups(epoch={epoch})"):
        groups = strategy.groups(net, epoch)
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise PluginError(f"{name} breaks the contract: groups() must return a list of Group, not {groups!r}")
    scales: dict[nn.Parameter, float] = {}
    for group in groups:
        if not (math.isfinite(group.lr_scale) and group.lr_scale >= 0):
            raise PluginError(f"{name} breaks the contract: lr_scale must be 0 or more, not {group.lr_scale}")
        for parameter in group.parameters:
            if parameter not in factors:
                raise PluginError(f"{name} breaks the contract: it returned a parameter that the network does not have")
            if parameter in scales:
                raise PluginError(f"{name} breaks the contract: it returned a parameter in two groups")
            scales[parameter] = group.lr_scale * factors[parameter]
    if not scales:
        raise PluginError(f"{name} returned no trainable parameters for epoch {epoch + 1}")
    return {parameter: scales[parameter] for parameter in net.parameters() if parameter in scales}
