"""The contract of a backbone. Nothing heavy is imported here, so that options can be checked before torch is loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from inat_ft.config import Section
from inat_ft.images.resizing import Resizing

if TYPE_CHECKING:
    from torch import Tensor, nn

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocess(Section):
    """How an image becomes the network's input: resized, scaled to 0..1, then (x - mean) / std."""

    image_size: int = 224
    """Height and width in pixels of the images that it learns from."""
    eval_image_size: int | None = None
    """The same for validation, test and prediction, where it differs."""
    resize: Literal["squash", "crop", "pad"] = "squash"
    """How an image becomes a square of that size, as in the configuration."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """With antialiasing."""
    mean: tuple[_Finite, _Finite, _Finite] = (0.485, 0.456, 0.406)
    """Subtracted from each channel (red, green, blue; 0..1). Default: ImageNet's."""
    std: tuple[_Positive, _Positive, _Positive] = (0.229, 0.224, 0.225)
    """What each channel is then divided by. Default: ImageNet's."""

    @property
    def eval_size(self) -> int:
        """Height and width of the images that it is evaluated on."""
        return self.eval_image_size or self.image_size

    @property
    def resizing(self) -> Resizing:
        """How an image becomes a square."""
        return Resizing(self.resize, self.interpolation)

    @field_validator("resize", mode="before")
    @classmethod
    def _from_earlier_version(cls, value: object) -> object:
        return "squash" if value == "whole image, bilinear, antialiased" else value


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights that a backbone can start from: their name, their input, and how to read them."""

    name: str
    load: Callable[[], dict[str, Tensor]]
    """Reads the state dict of the classifier that `build` makes; raises WeightsError when the file cannot be had."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    min_size: int = 1
    """Height and width of the smallest images that they make sense for."""


class Backbone(Section):
    """Builds a classifier. Its fields are its options; a string below a field is the option's help.

    Registered under the entry-point group `inat_ft.backbones`. What `build` returns is an ordinary module from images
    `[N, 3, H, W]` float32 to logits, whose last layer is a Linear: stages and the new head are derived from it.
    """

    pretrained: ClassVar[bool] = False
    """Whether there are weights to start from."""
    head_dropout: ClassVar[bool] = True
    """Whether the head gets the dropout; otherwise `build` has placed it elsewhere."""

    @abstractmethod
    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """The classifier with random weights. `image_size` and `dropout` are for networks that depend on them."""

    def weights(self, name: str) -> PretrainedWeights:
        """The weights of that name (`imagenet` or the backbone's own). Raises WeightsError when there are none."""
        from inat_ft.errors import WeightsError

        raise WeightsError(f"{type(self).__name__} has no weights '{name}'", "start from scratch: --weights none")
