"""Strategies in which what learns, or how fast, changes from epoch to epoch or from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from inat_ft.models.net import Net


class LpFt(Strategy):
    """Linear probing, then fine-tuning: the head first, then everything at a lower rate.

    A head that fits already does not distort the pretrained features (Kumar et al. 2022, arXiv 2202.10054).
    """

    space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    head_epochs: Annotated[int, Field(ge=1)] = 2
    """Epochs in which the head alone learns; they come from the cache."""
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate of the whole network after that, as a multiple of the run's."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """The head, later everything."""
        if epoch < self.head_epochs:
            return [Group(net.head.parameters())]
        return [Group(net.parameters(), self.lr_scale)]


class Gradual(Strategy):
    """Unfreeze stage by stage from the top: the head, then one more stage every few epochs.

    Howard and Ruder 2018, Universal Language Model Fine-tuning (arXiv 1801.06146).
    """

    space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [3e-4, 1e-3]}}

    every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two stages."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor on the learning rate for each stage further from the head."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """The head and as many of the last stages as it is time for."""
        count = min(epoch // self.every, len(net.stages))
        modules = [net.head, *reversed(net.stages.values())][: count + 1]
        return [Group(module.parameters(), self.lr_decay**depth) for depth, module in enumerate(modules)]


class Discriminative(Strategy):
    """Train everything, each stage at a lower rate than the one after it.

    Howard and Ruder 2018, Universal Language Model Fine-tuning (arXiv 1801.06146).
    """

    space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3]}, "decay": {"values": [0.4, 0.7]}}

    decay: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Factor on the learning rate for each stage further from the head."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Everything, stage by stage."""
        modules = [net.head, *reversed(net.stages.values())]
        return [Group(module.parameters(), self.decay**depth) for depth, module in enumerate(modules)]
