"""Low-rank adapters on convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inat_ft.models.net import Net


class Lora(Strategy):
    """Train the head and a low-rank change of each convolution, which is merged into it before saving.

    LoRA: Hu et al. 2022 (arXiv 2106.09685), on convolution kernels flattened to matrices.
    """

    space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3]}, "rank": {"values": [4, 16]}}

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    """Rank of the change."""
    alpha: Annotated[float, Field(gt=0)] = 8.0
    """The change is scaled by alpha / rank."""
    adapt_from: str | None = None
    """First stage that is adapted. Default: the last third (layer3 of a ResNet); the stages before can be cached."""

    def adapt(self, net: Net) -> Net:
        """Give each convolution of the adapted stages an adapter that starts at zero; grouped ones are left alone."""
        from torch import nn
        from torch.nn.utils import parametrize

        for stage in net.stages_from(self.adapt_from or net.default_stage, "--set strategy.adapt_from="):
            for module in list(stage.modules()):
                if isinstance(module, nn.Conv2d) and module.groups == 1:
                    parametrize.register_parametrization(module, "weight", self._adapter(module.weight))
        return net

    def _adapter(self, weight: Tensor) -> nn.Module:
        from inat_ft.models.adapters import LowRank

        return LowRank(weight.shape[0], weight[0].numel(), self.rank, self.alpha / self.rank)

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """The head and the adapters."""
        from inat_ft.models.adapters import LowRank

        adapters = [
            parameter for module in net.modules() if isinstance(module, LowRank) for parameter in module.parameters()
        ]
        return [Group(net.head.parameters()), Group(adapters)]

    def merge(self, net: Net) -> Net:
        """Add each change to its convolution, so that the network is an ordinary one again."""
        from torch.nn.utils import parametrize

        for module in list(net.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return net
