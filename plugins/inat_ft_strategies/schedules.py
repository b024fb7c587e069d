"""Strategies whose trainable parameters or learning rates differ between epochs or stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from torch.nn import Parameter

    from inat_ft.models.net import Net


class LpFt(Strategy):
    """Train the head first, then the whole network at a lower learning rate (linear probing, then fine-tuning).

    Starting from a trained head distorts the pretrained features less (Kumar et al. 2022, arXiv 2202.10054).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    head_epochs: Annotated[int, Field(ge=1)] = 2
    """Epochs in which only the head is trained; they use cached features."""
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor on the learning rate when the whole network is trained."""

    def warnings(self, epochs: int) -> Sequence[str]:
        """Warn when the run ends before fine-tuning starts."""
        if self.head_epochs < epochs:
            return ()
        return [f"lp-ft trains only the head: head_epochs is {self.head_epochs} and epochs is {epochs}"]

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head, or all parameters after `head_epochs`."""
        if epoch < self.head_epochs:
            return [Group(net.head.parameters())]
        return [Group(net.parameters(), self.lr_scale)]


class Gradual(Strategy):
    """Train the head first, then unfreeze one more stage every few epochs, last stage first.

    Gradual unfreezing of ULMFiT (Howard and Ruder 2018, arXiv 1801.06146).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [3e-4, 1e-3]}}

    every: Annotated[int, Field(ge=1)] = 1
    """Epochs between unfreezing two stages."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor on the learning rate for each stage further from the head."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head and the stages that are unfrozen in this epoch."""
        steps = _head_to_stem(net)[: epoch // self.every + 1]
        return [Group(parameters, self.lr_decay**depth) for depth, parameters in enumerate(steps)]


class Discriminative(Strategy):
    """Train the whole network, with a lower learning rate for stages further from the head.

    Discriminative fine-tuning of ULMFiT (Howard and Ruder 2018, arXiv 1801.06146).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3]}, "decay": {"values": [0.4, 0.7]}}

    decay: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Factor on the learning rate for each stage further from the head."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return all parameters, grouped by stage."""
        return [Group(parameters, self.decay**depth) for depth, parameters in enumerate(_head_to_stem(net))]


def _head_to_stem(net: Net) -> list[list[Parameter]]:
    """Return the parameters of the head and of each stage, last stage first.

    A stage that only normalizes is merged with the stage before it.
    """
    steps: list[list[Parameter]] = []
    for stage in net.stages.values():
        own = list(stage.parameters())
        if steps and all(parameter.ndim < 2 for parameter in own):
            steps[-1] += own
        else:
            steps.append(own)
    return [list(net.head.parameters()), *reversed(steps)]
