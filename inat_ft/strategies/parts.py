"""Strategies that train a small part of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inat_ft.errors import ConfigError
from inat_ft.strategies.base import Group, Strategy

if TYPE_CHECKING:
    from inat_ft.models.net import Net


class BnOnly(Strategy):
    """Train the head and the scales and shifts of the BatchNorm layers, whose statistics follow the new images.

    Frankle et al. 2021, Training BatchNorm and Only BatchNorm (arXiv 2003.00152).
    """

    space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """The head and every BatchNorm."""
        norms = [parameter for norm in net.batch_norms() for parameter in norm.parameters(recurse=False)]
        if not norms:
            raise ConfigError(
                f"{net.name} has no BatchNorm that bn-only could train", "try: --mode bias-only, or --mode head"
            )
        return [Group(net.head.parameters()), Group(norms)]


class BiasOnly(Strategy):
    """Train the head and every bias, those of normalisation layers included.

    BitFit: Ben Zaken et al. 2022 (arXiv 2106.10199).
    """

    space: ClassVar[Mapping[str, Any]] = {"lr": {"values": [1e-3, 3e-3]}}

    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """The head and the biases of the stages."""
        biases = [
            parameter
            for stage in net.stages.values()
            for name, parameter in stage.named_parameters()
            if name.rsplit(".", 1)[-1] == "bias"
        ]
        return [Group(net.head.parameters()), Group(biases)]
