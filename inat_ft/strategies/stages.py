"""Strategies that train the head, the later stages, or the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from inat_ft.models.net import Net


class Head(Strategy):
    """Train only the new head and freeze the backbone (feature extraction, linear probing)."""

    trains_head_only: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head."""
        return [Group(net.head.parameters())]


class Partial(Strategy):
    """Train the head and the stages from `unfreeze_from` on; earlier stages are frozen."""

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-4, 3e-4]}}

    unfreeze_from: str | None = None
    """First trainable stage, by its name in the backbone. Default: the last third (layer3 of a ResNet)."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head and the later stages."""
        first = self.unfreeze_from or net.default_stage
        return [Group(module.parameters()) for module in (*net.stages_from(first, "--unfreeze-from "), net.head)]


class Full(Strategy):
    """Train the whole network."""

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [3e-5, 1e-4]}}

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return all parameters."""
        return [Group(net.parameters())]
