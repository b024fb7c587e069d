"""Strategies that train a small subset of the parameters of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inat_ft.errors import ConfigError
from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from inat_ft.models.net import Net


class BnOnly(Strategy):
    """Train the head and the weights and biases of the BatchNorm layers; their running statistics are updated.

    Training BatchNorm and Only BatchNorm (Frankle et al. 2021, arXiv 2003.00152).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head and all BatchNorm layers. Raises ConfigError when there are none."""
        norms = [parameter for norm in net.batch_norms() for parameter in norm.parameters(recurse=False)]
        if not norms:
            raise ConfigError(
                f"{net.name} has no BatchNorm layer with weights, so bn-only has nothing to train",
                "try: --mode bias-only, --mode lora, or --mode head",
            )
        return [Group(net.head.parameters()), Group(norms)]


class BiasOnly(Strategy):
    """Train the head and every bias, including those of normalization and attention layers.

    BitFit (Ben Zaken et al. 2022, arXiv 2106.10199).
    """

    search_space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the head and the biases of all stages. Raises ConfigError when the stages have none."""
        biases = [
            parameter
            for stage in net.stages.values()
            for name, parameter in stage.named_parameters()
            if _is_bias(name.rsplit(".", 1)[-1])
        ]
        if not biases:
            raise ConfigError(
                f"{net.name} has no bias before its head, so bias-only has nothing to train",
                "try: --mode partial, --mode lora, or --mode head",
            )
        return [Group(net.head.parameters()), Group(biases)]


def _is_bias(name: str) -> bool:
    """Return whether a parameter with this name is a bias vector.

    Besides `bias`: the biases of attention (`in_proj_bias`, `q_bias`, `v_bias`) and of recurrent layers (`bias_ih_l0`).
    Excluded: tables of relative position biases and the extra tokens `bias_k` and `bias_v` of nn.MultiheadAttention.
    """
    return name == "bias" or name.endswith("_bias") or name.startswith(("bias_ih_l", "bias_hh_l"))
