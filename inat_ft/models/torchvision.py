"""torchvision classifiers by name, with torchvision's weights."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

from inat_ft.errors import ConfigError, WeightsError, did_you_mean
from inat_ft.models.base import Backbone, Preprocess, PretrainedWeights

if TYPE_CHECKING:
    from torch import nn


_INCEPTIONS = ("googlenet", "inception_v3")


class Torchvision(Backbone):
    """A torchvision classifier, such as resnet50."""

    pretrained: ClassVar[bool] = True

    variant: str
    """Name of the classifier in torchvision."""

    @staticmethod
    def stands_for(name: str) -> bool:
        """Return whether torchvision has a classifier with this name."""
        return name in _names()

    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """Return the classifier with random weights, without auxiliary outputs. Raises ConfigError for an unknown name.

        torchvision's SqueezeNet ends with a convolution, a ReLU and global average pooling; this one ends with global
        average pooling and a Linear.
        """
        from torch import nn

        builder = self._builder()
        options: dict[str, Any] = {"weights": None}
        if self.variant in _INCEPTIONS:  # auxiliary outputs are for training from scratch
            options |= {"aux_logits": False, "init_weights": False}
        if self.variant.startswith("vit_"):  # the position embedding depends on the image size
            options["image_size"] = image_size
        if self.variant.startswith("maxvit_"):  # windows must tile the image
            options["input_size"] = (image_size, image_size)
        classifier: nn.Module = builder(**options)
        if self.variant.startswith("squeezenet"):
            last = nn.Sequential(OrderedDict({"1": nn.Linear(512, num_classes)}))  # with the name of the convolution
            ending: dict[str, nn.Module] = {
                "pool": nn.AdaptiveAvgPool2d(1),
                "flatten": nn.Flatten(),
                "classifier": last,
            }
            return nn.Sequential(OrderedDict(features=classifier.get_submodule("features"), **ending))
        return classifier

    def weights(self, name: str) -> PretrainedWeights:
        """Return torchvision's default weights for `imagenet`, or those with a name such as IMAGENET1K_V1."""
        from torchvision.models import get_model_weights

        self._builder()
        known = get_model_weights(self.variant)
        if name == "imagenet":
            weights = known.DEFAULT
        elif name in known.__members__:
            weights = known[name]
        else:
            raise WeightsError(
                f"{self.variant} has no weights '{name}'{did_you_mean(name, list(known.__members__))}",
                f"available: imagenet, none, {', '.join(known.__members__)}, or a .pth or .safetensors file",
            )
        crop = weights.transforms()
        mean, std = tuple(crop.mean), tuple(crop.std)
        if self.variant in _INCEPTIONS:  # torchvision converts the normalization inside these models
            mean = std = (0.5, 0.5, 0.5)
        (size,), (resized,) = set(crop.crop_size), set(crop.resize_size)
        preprocess = Preprocess(
            image_size=size,
            resize="crop",
            interpolation=crop.interpolation.value,
            crop_pct=size / (resized + 0.5),
            mean=mean,
            std=std,
        )

        def load() -> dict[str, Any]:
            from inat_ft.models.weights import fetch_weights

            return fetch_weights(weights.url)

        return PretrainedWeights(str(weights), load, preprocess, max(weights.meta["min_size"]))

    def _builder(self) -> Any:
        from torchvision.models import get_model_builder

        names = _names()
        if self.variant not in names:
            from inat_ft.registry import BACKBONES, plugins

            others = [name for name in plugins(BACKBONES) if name != "torchvision"]
            problem = f"unknown backbone '{self.variant}'{did_you_mean(self.variant, [*others, *names])}"
            hint = f"available: resnet50, any other torchvision classifier, and {', '.join(others)}"
            raise ConfigError(problem, hint)
        return get_model_builder(self.variant)


def _names() -> list[str]:
    import torchvision
    from torchvision.models import list_models

    return list(list_models(module=torchvision.models))
