"""What learns when: a strategy asked ahead for all epochs, and everything the engine derives from its answers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import nn

from inat_ft.errors import PluginError
from inat_ft.models.net import Net
from inat_ft.registry import STRATEGIES, plugin_errors, plugin_label
from inat_ft.strategies.base import Group, Strategy


@dataclass(frozen=True)
class Trainable:
    """What learns in one epoch: parameters and, for each, its multiple of the learning rate.

    no_weight_decay: ids of the parameters that weight decay spares.
    """

    scales: tuple[tuple[nn.Parameter, float], ...]
    no_weight_decay: frozenset[int] = frozenset()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [parameter for parameter, _ in self.scales]

    def same_as(self, other: Trainable) -> bool:
        """Whether the same parameters learn at the same rates."""
        return self._ids() == other._ids()

    def _ids(self) -> dict[int, float]:
        return {id(parameter): scale for parameter, scale in self.scales}


@dataclass(frozen=True)
class TrainingPlan:
    """The strategy's answers for all epochs."""

    net: Net
    epochs: tuple[Trainable, ...]

    @cached_property
    def trainable_ids(self) -> frozenset[int]:
        """Ids of the parameters that learn in at least one epoch."""
        return frozenset(id(parameter) for epoch in self.epochs for parameter in epoch.parameters)

    @cached_property
    def num_trainable(self) -> int:
        """How many numbers learn in at least one epoch."""
        return sum(parameter.numel() for parameter in self.net.parameters() if id(parameter) in self.trainable_ids)

    @cached_property
    def _prefixes(self) -> list[int]:
        """Number of leading stages in which nothing learns, by epoch."""
        stages: dict[int, int] = {}
        for number, stage in enumerate(self.net.stages.values()):
            for parameter in stage.parameters():
                stages.setdefault(id(parameter), number)
        num_stages = len(self.net.stages)
        return [min(stages.get(id(p), num_stages) for p in epoch.parameters) for epoch in self.epochs]

    @cached_property
    def _shortest_prefixes(self) -> list[int]:
        """The shortest of the prefixes so far, by epoch."""
        return list(accumulate(self._prefixes, min))

    @cached_property
    def _last_trained_epoch(self) -> list[list[int]]:
        """By epoch, then by length of the prefix: the last epoch before it in which something in the prefix learned."""
        rows = [[0] * (len(self.net.stages) + 1)]
        for number, first in enumerate(self._prefixes, 1):
            rows.append([number if first < length else last for length, last in enumerate(rows[-1])])
        return rows

    @cached_property
    def _phases(self) -> list[int]:
        """The epochs in which something else begins to learn, the first included."""
        changed = [
            number for number in range(1, len(self.epochs)) if not self.epochs[number].same_as(self.epochs[number - 1])
        ]
        return [0, *changed]

    def frozen_prefix(self, epoch: int, since_start: bool = False) -> int:
        """Return the number of leading stages in which nothing learns in this epoch; since_start: nor in any before it."""
        return self._shortest_prefixes[epoch] if since_start else self._prefixes[epoch]

    def last_trained_epoch(self, prefix: int, epoch: int) -> int:
        """Return the last epoch before this one, counted from 1, in which something in the prefix learned; 0: none.

        What a frozen prefix computes for an image stays the same as long as this does.
        """
        return self._last_trained_epoch[epoch][prefix]

    def epochs_until_thaw(self, epoch: int) -> int:
        """Return for how many epochs from this one on, itself included, at least as long a prefix stays frozen."""
        prefix, last = self.frozen_prefix(epoch), epoch
        while last < len(self.epochs) and self.frozen_prefix(last) >= prefix:
            last += 1
        return last - epoch

    def starts_phase(self, epoch: int) -> bool:
        """Return whether something else learns in this epoch than in the one before."""
        return epoch > 0 and self.phase(epoch)[0] == epoch

    def phase(self, epoch: int) -> tuple[int, int]:
        """Return the first and the last (excluded) of the epochs around this one in which the same learns."""
        place = bisect_right(self._phases, epoch)
        return self._phases[place - 1], (*self._phases, len(self.epochs))[place]

    def trainable_state_names(self) -> list[str]:
        """Names, in the network's own state, of every tensor that training may change."""
        names = {name for name, parameter in self.net.named_parameters() if id(parameter) in self.trainable_ids}
        for path, module in self.net.named_modules():
            if any(id(parameter) in self.trainable_ids for parameter in module.parameters(recurse=False)):
                names |= {f"{path}.{name}" for name, _ in module.named_buffers(recurse=False)}
        return [name for name in self.net.state_dict() if name in names]


def make_plan(strategy: Strategy, net: Net, epochs: int, layer_decay: float = 1.0) -> TrainingPlan:
    """Ask the strategy for all epochs.

    layer_decay: factor on the learning rate for each layer further from the head, where a layer is a block, as in timm.
    Raises PluginError naming the strategy when it breaks the contract.
    """
    factors = {key: layer_decay**depth for key, depth in _depths(net).items()} if layer_decay < 1 else {}
    spared = frozenset(
        id(parameter)
        for name, parameter in net.named_parameters()
        if parameter.ndim <= 1 or net.original_name(name) in net.no_weight_decay
    )
    return TrainingPlan(net, tuple(_learning(strategy, net, epoch, factors, spared) for epoch in range(epochs)))


def _depths(net: Net) -> dict[int, int]:
    """Return for each parameter, by id, how many layers come after its own."""
    last = max(net.layer_ids.values())
    return {id(parameter): last - _layer(net, net.original_name(name)) for name, parameter in net.named_parameters()}


def _layer(net: Net, name: str) -> int:
    """Return the layer of a parameter; one that a strategy added, such as an adapter's, belongs to the module it is in."""
    if name in net.layer_ids:
        return net.layer_ids[name]
    module = name.rpartition(".")[0]
    near = [layer for known, layer in net.layer_ids.items() if known.startswith(f"{module}.")]
    return max(near) if near else _layer(net, module) if module else 0


def _learning(
    strategy: Strategy, net: Net, epoch: int, factors: Mapping[int, float], spared: frozenset[int]
) -> Trainable:
    name = plugin_label(STRATEGIES, type(strategy))
    with plugin_errors(STRATEGIES, type(strategy), f"groups(epoch={epoch})"):
        groups = strategy.groups(net, epoch)
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise PluginError(f"{name} breaks the contract: groups() must return a list of Group, not {groups!r}")
    known = {id(parameter) for parameter in net.parameters()}
    scales: dict[int, tuple[nn.Parameter, float]] = {}
    for group in groups:
        if not (math.isfinite(group.lr_scale) and group.lr_scale >= 0):
            raise PluginError(f"{name} breaks the contract: lr_scale must be 0 or more, not {group.lr_scale}")
        for parameter in group.parameters:
            if id(parameter) not in known:
                raise PluginError(f"{name} breaks the contract: it returned a parameter that is not the network's")
            if id(parameter) in scales:
                raise PluginError(f"{name} breaks the contract: it returned a parameter in two groups")
            scales[id(parameter)] = (parameter, group.lr_scale * factors.get(id(parameter), 1.0))
    if not scales:
        raise PluginError(f"{name} lets nothing learn in epoch {epoch + 1}")
    order = {id(parameter): place for place, parameter in enumerate(net.parameters())}
    return Trainable(tuple(sorted(scales.values(), key=lambda pair: order[id(pair[0])])), spared)
