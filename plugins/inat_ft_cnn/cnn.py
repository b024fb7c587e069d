"""The CNN of Part A: five convolution blocks and a dense layer, trained from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from inat_ft.errors import ConfigError
from inat_ft.models.base import Backbone

if TYPE_CHECKING:
    from torch import nn

_BLOCKS = 5
_SCALE = {"same": 1.0, "doubling": 2.0, "halving": 0.5}


class Cnn(Backbone):
    """Five blocks of 3x3 convolution, activation and 2x2 max pooling, then a dense layer; no pretrained weights."""

    head_dropout: ClassVar[bool] = False

    activation: Literal["relu", "gelu", "silu", "mish"] = "silu"
    """Activation after each convolution and the dense layer."""
    filters: Annotated[int, Field(ge=16, le=512)] = 64
    """Number of filters of the first block."""
    organisation: Literal["same", "doubling", "halving"] = "doubling"
    """How the number of filters changes from block to block."""
    batch_norm: bool = True
    """Batch normalization after each convolution."""
    dense: Annotated[int, Field(ge=8, le=8192)] = 128
    """Width of the dense layer; dropout is applied before it."""

    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """Return the network. Raises ConfigError when the images are too small for five pooling layers."""
        from collections import OrderedDict

        from torch import nn

        side = image_size // 2**_BLOCKS
        if side < 1:
            raise ConfigError(f"images of {image_size} pixels are too small for cnn", "use --image-size 32 or more")
        act = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish}[self.activation]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for number in range(_BLOCKS):
            filters = max(1, round(self.filters * _SCALE[self.organisation] ** number))
            block = OrderedDict[str, nn.Module](
                conv=nn.Conv2d(channels, filters, 3, padding=1, bias=not self.batch_norm)
            )
            if self.batch_norm:
                block["bn"] = nn.BatchNorm2d(filters)
            block |= {"act": act(), "pool": nn.MaxPool2d(2)}
            layers[f"block{number + 1}"] = nn.Sequential(block)
            channels = filters
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["dense"] = nn.Linear(channels * side * side, self.dense)
        layers["act"] = act()
        layers["fc"] = nn.Linear(self.dense, num_classes)
        return nn.Sequential(layers)
