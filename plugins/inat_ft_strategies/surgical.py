"""Surgical fine-tuning (Lee et al. 2023, arXiv 2210.11466): select layers by their gradients on the training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from inat_ft.errors import ConfigError, did_you_mean
from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from inat_ft.models.net import Net


class Surgical(Strategy):
    """Train the head and one stage; `auto` selects the stage with the largest relative gradient norm.

    Lee et al. 2023, Surgical Fine-Tuning (arXiv 2210.11466).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-4, 3e-4]}}

    needs_gradients: ClassVar[bool] = True

    block: str = "auto"
    """Trainable stage, by its name in the backbone, or auto."""

    def resolve(self, net: Net, gradients: Callable[[], Mapping[str, float]]) -> Surgical:
        """Replace `auto` by the stage with the largest mean relative gradient norm."""
        if self.block != "auto":
            return self
        ratios = gradients()
        means = {}
        for name, stage in net.stages.items():
            own = [ratios[key] for key, _ in stage.named_parameters() if key in ratios]
            means[name] = sum(own) / len(own) if own else 0.0
        return Surgical(block=max(means, key=means.__getitem__))

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head and the selected stage."""
        chosen = net.stages_from(self.block, "--set strategy.block=")[:1]
        return [Group(module.parameters()) for module in (*chosen, net.head)]


class AutoRgn(Strategy):
    """Train the whole network, with the learning rate of each tensor proportional to its relative gradient norm.

    Auto-RGN (Lee et al. 2023, arXiv 2210.11466). The norms are measured once, before training.
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [3e-4, 1e-3]}}

    needs_gradients: ClassVar[bool] = True

    scales: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Factor on the learning rate for each tensor name; other tensors are frozen. Default: measured before training."""

    def resolve(self, net: Net, gradients: Callable[[], Mapping[str, float]]) -> AutoRgn:
        """Set the scales to the relative gradient norms, divided by the largest one.

        Raises ConfigError when a given scale names a tensor that the network does not have.
        """
        known = tuple(name for stage in net.stages.values() for name, _ in stage.named_parameters())
        for name in sorted(set(self.scales) - set(known)):
            raise ConfigError(
                f"strategy.scales: {net.name} has no tensor '{name}' in its stages{did_you_mean(name, known)}",
                f"examples of names: {', '.join(known[:3])}",
            )
        if self.scales:
            return self
        ratios = {name: ratio for name, ratio in gradients().items() if not name.startswith(f"{net.head_name}.")}
        largest = max(ratios.values(), default=0.0) or 1.0
        return AutoRgn(scales={name: ratio / largest for name, ratio in ratios.items()})

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return each tensor with its scale, and the head with scale 1."""
        body = [
            Group([parameter], self.scales[name])
            for stage in net.stages.values()
            for name, parameter in stage.named_parameters()
            if self.scales.get(name)
        ]
        return [*body, Group(net.head.parameters())]
