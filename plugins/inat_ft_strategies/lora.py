"""LoRA: low-rank adapters on the weight matrices of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from inat_ft.errors import ConfigError
from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from inat_ft.models.net import Net


class Lora(Strategy):
    """Train the head and low-rank adapters of Linear layers and convolutions, and merge the adapters before saving.

    LoRA (Hu et al. 2022, arXiv 2106.09685), applied to all weight matrices; convolution kernels are flattened to matrices.
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3]}, "rank": {"values": [4, 16]}}

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 8.0
    """Scale of the adapters times rank: their output is multiplied by alpha / rank."""
    adapt_from: str | None = None
    """First stage with adapters. Default: the last third (layer3 of a ResNet). Earlier stages are frozen."""

    def adapt(self, net: Net) -> Net:
        """Add a zero-initialized adapter to each weight matrix of the selected stages.

        Raises ConfigError when they have no weight matrix.
        """
        from inat_ft_strategies.adapters import add_adapters

        first = self.adapt_from or net.default_stage
        stages = net.stages_from(first, "--set strategy.adapt_from=")
        if not sum(add_adapters(stage, self.rank, self.alpha / self.rank, net.seed) for stage in stages):
            raise ConfigError(
                f"{net.name} has no Linear layer or ungrouped convolution from '{first}' on: lora has nothing to adapt",
                f"try: --set strategy.adapt_from={net.stage_names[0]}, --mode partial, or --mode head",
            )
        return net

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head and the adapters."""
        from inat_ft_strategies.adapters import adapter_parameters

        return [Group(net.head.parameters()), Group(adapter_parameters(net))]

    def merge(self, net: Net) -> Net:
        """Add each adapter to its weight and remove it."""
        from inat_ft_strategies.adapters import merge_adapters

        merge_adapters(net)
        return net
