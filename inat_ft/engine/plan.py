"""What learns when: a strategy asked ahead for all epochs, and everything the engine derives from its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from inat_ft.errors import PluginError
from inat_ft.models.net import Net
from inat_ft.registry import STRATEGIES, blamed, described
from inat_ft.strategies.base import Group, Strategy


@dataclass(frozen=True)
class Learning:
    """What learns in one epoch: parameters and, for each, its multiple of the learning rate."""

    scales: tuple[tuple[nn.Parameter, float], ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [parameter for parameter, _ in self.scales]

    def same_as(self, other: Learning) -> bool:
        """Whether the same parameters learn at the same rates."""
        return self._ids() == other._ids()

    def _ids(self) -> dict[int, float]:
        return {id(parameter): scale for parameter, scale in self.scales}


@dataclass(frozen=True)
class Plan:
    """The strategy's answers for all epochs."""

    net: Net
    epochs: tuple[Learning, ...]

    @cached_property
    def learned(self) -> frozenset[int]:
        """Ids of the parameters that learn in at least one epoch."""
        return frozenset(id(parameter) for epoch in self.epochs for parameter in epoch.parameters)

    @cached_property
    def num_learned(self) -> int:
        """How many numbers learn in at least one epoch."""
        return sum(parameter.numel() for parameter in self.net.parameters() if id(parameter) in self.learned)

    def frozen_prefix(self, epoch: int, since_start: bool = False) -> int:
        """Number of leading stages in which nothing learns in this epoch; since_start: nor in any epoch before it."""
        first = 0 if since_start else epoch
        return min(self._prefix(number) for number in range(first, epoch + 1))

    def _prefix(self, epoch: int) -> int:
        learning = {id(parameter) for parameter in self.epochs[epoch].parameters}
        for number, stage in enumerate(self.net.stages.values()):
            if any(id(parameter) in learning for parameter in stage.parameters()):
                return number
        return len(self.net.stages)

    def last_learned(self, prefix: int, epoch: int) -> int:
        """The last epoch before this one, counted from 1, in which something in so many stages learned; 0: none.

        What a frozen prefix makes of an image stays the same as long as this does.
        """
        return next((number for number in range(epoch, 0, -1) if self._prefix(number - 1) < prefix), 0)

    def repeats(self, epoch: int) -> int:
        """For how many epochs from this one on at least as long a prefix stays frozen, this one included."""
        prefix, last = self.frozen_prefix(epoch), epoch
        while last < len(self.epochs) and self.frozen_prefix(last) >= prefix:
            last += 1
        return last - epoch

    def changes(self, epoch: int) -> bool:
        """Whether something else learns in this epoch than in the one before."""
        return epoch > 0 and not self.epochs[epoch].same_as(self.epochs[epoch - 1])

    def stretch(self, epoch: int) -> tuple[int, int]:
        """The first and the last (excluded) of the epochs around this one in which the same learns."""
        first, last = epoch, epoch + 1
        while first > 0 and not self.changes(first):
            first -= 1
        while last < len(self.epochs) and not self.changes(last):
            last += 1
        return first, last

    def changing_state(self) -> list[str]:
        """Names, in the network's own state, of every tensor that training may change."""
        names = {name for name, parameter in self.net.named_parameters() if id(parameter) in self.learned}
        for path, module in self.net.named_modules():
            if any(id(parameter) in self.learned for parameter in module.parameters(recurse=False)):
                names |= {f"{path}.{name}" for name, _ in module.named_buffers(recurse=False)}
        return [name for name in self.net.state_dict() if name in names]


def make_plan(strategy: Strategy, net: Net, epochs: int, layer_decay: float = 1.0) -> Plan:
    """Ask the strategy for all epochs.

    layer_decay: factor on every rate for each layer that lies between it and the end. Raises PluginError naming the
    strategy when it breaks the contract.
    """
    factors = {key: layer_decay**depth for key, depth in _depths(net).items()} if layer_decay < 1 else {}
    return Plan(net, tuple(_learning(strategy, net, epoch, factors) for epoch in range(epochs)))


def _depths(net: Net) -> dict[int, int]:
    """For each parameter, by id, how many layers come after its own. Normalisation belongs to the layer before it."""
    places: dict[int, int] = {}
    place = 0
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        place += any(parameter.ndim > 1 for parameter in own)
        places |= {id(parameter): place for parameter in own}
    return {key: place - own for key, own in places.items()}


def _learning(strategy: Strategy, net: Net, epoch: int, factors: Mapping[int, float]) -> Learning:
    name = described(STRATEGIES, type(strategy))
    with blamed(STRATEGIES, type(strategy), f"groups(epoch={epoch})"):
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
    return Learning(tuple(sorted(scales.values(), key=lambda pair: order[id(pair[0])])))
