"""Strategies in which what learns, or how fast, changes from epoch to epoch or from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from torch.nn import Parameter

    from inat_ft.models.net import Net


class LpFt(Strategy):
    """Linear probing, then fine-tuning: the head first, then everything at a lower rate.

    A head that fits already does not distort the pretrained features (Kumar et al. 2022, arXiv 2202.10054).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    head_epochs: Annotated[int, Field(ge=1)] = 2
    """Epochs in which the head alone learns; they come from the cache."""
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate of the whole network after that, as a multiple of the run's."""

    def warnings(self, epochs: int) -> Sequence[str]:
        """Whether there is time for more than the head."""
        if self.head_epochs < epochs:
            return ()
        return [f"lp-ft never comes to fine-tuning: head_epochs is {self.head_epochs}, and epochs is {epochs}"]

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """The head, later everything."""
        if epoch < self.head_epochs:
            return [Group(net.head.parameters())]
        return [Group(net.parameters(), self.lr_scale)]


class Gradual(Strategy):
    """Unfreeze stage by stage from the top: the head, then one more stage every few epochs.

    Howard and Ruder 2018, Universal Language Model Fine-tuning (arXiv 1801.06146).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [3e-4, 1e-3]}}

    every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two stages."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor on the learning rate for each stage further from the head."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """The head and as many of the last stages as it is time for."""
        steps = _from_the_top(net)[: epoch // self.every + 1]
        return [Group(parameters, self.lr_decay**depth) for depth, parameters in enumerate(steps)]


class Discriminative(Strategy):
    """Train everything, each stage at a lower rate than the one after it.

    Howard and Ruder 2018, Universal Language Model Fine-tuning (arXiv 1801.06146).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3]}, "decay": {"values": [0.4, 0.7]}}

    decay: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Factor on the learning rate for each stage further from the head."""

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Everything, stage by stage."""
        return [Group(parameters, self.decay**depth) for depth, parameters in enumerate(_from_the_top(net))]


def _from_the_top(net: Net) -> list[list[Parameter]]:
    """The parameters of the head and of each stage, the last first; normalisation goes with the stage before it."""
    steps: list[list[Parameter]] = []
    for stage in net.stages.values():
        own = list(stage.parameters())
        if steps and all(parameter.ndim < 2 for parameter in own):
            steps[-1] += own
        else:
            steps.append(own)
    return [list(net.head.parameters()), *reversed(steps)]
