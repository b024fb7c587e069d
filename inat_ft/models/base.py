"""The base class of backbones. It does not import torch, so options are validated before torch is loaded."""

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

_Size = Annotated[int, Field(ge=1, le=4096)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocess(Section):
    """Preprocessing of an image: resize, scale to 0..1, then (x - mean) / std."""

    image_size: _Size = 224
    """Height and width of training images, in pixels."""
    eval_image_size: _Size | None = None
    """Height and width for validation, test and prediction, in pixels. Default: image_size."""
    resize: Literal["squash", "crop", "pad"] = "squash"
    """How an image is made square, as in the configuration."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of resizing, with antialiasing."""
    crop_pct: _Positive | None = None
    """With `--resize weights`, the share of the resized side that the center crop keeps."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """Color of the bars of pad."""
    mean: tuple[_Finite, _Finite, _Finite] = (0.485, 0.456, 0.406)
    """Mean of each channel (red, green, blue; 0..1). Default: ImageNet."""
    std: tuple[_Positive, _Positive, _Positive] = (0.229, 0.224, 0.225)
    """Divisor of each channel. Default: ImageNet."""

    @property
    def eval_size(self) -> int:
        """Height and width for validation, test and prediction, in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def resizing(self) -> Resizing:
        """How an image is made square."""
        return Resizing(self.resize, self.interpolation, self.crop_pct, self.fill)

    @field_validator("resize", mode="before")
    @classmethod
    def _from_earlier_version(cls, value: object) -> object:
        return "squash" if value == "whole image, bilinear, antialiased" else value


@dataclass(frozen=True)
class PretrainedWeights:
    """Pretrained weights of a backbone: their name, their preprocessing, and how to load them."""

    name: str
    load: Callable[[], dict[str, Tensor]]
    """Returns a state dict for the classifier that `build` returns; raises WeightsError when it is not available."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    min_size: int = 1
    """Smallest supported image height and width, in pixels."""


class Backbone(Section):
    """Base class of backbones: build a classifier.

    The fields are the options of the backbone; the string below a field is the help of the option. Register a subclass
    in the entry-point group `inat_ft.backbones`. `build` returns a module that maps images `[N, 3, H, W]` float32 to
    logits and ends with a Linear layer. The stages and the new head are derived from it.
    """

    pretrained: ClassVar[bool] = False
    """Whether pretrained weights are available."""
    head_dropout: ClassVar[bool] = True
    """Whether dropout is applied before the new head; if False, `build` applies it elsewhere."""

    @abstractmethod
    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """Return the classifier with random weights. Networks that do not depend on `image_size` or `dropout` ignore them."""

    def weights(self, name: str) -> PretrainedWeights:
        """Return the weights with this name, such as `imagenet`. Raises WeightsError when they do not exist."""
        from inat_ft.errors import WeightsError

        raise WeightsError(f"{type(self).__name__} has no weights '{name}'", "train from scratch: --weights none")
