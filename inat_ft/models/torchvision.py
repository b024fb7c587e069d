"""Every classifier of torchvision by its own name, with torchvision's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inat_ft.errors import ConfigError, WeightsError, did_you_mean
from inat_ft.models.base import Backbone, Preprocess, Pretrained

if TYPE_CHECKING:
    from torch import nn


class Torchvision(Backbone):
    """A classifier of torchvision, such as resnet50."""

    pretrained: ClassVar[bool] = True

    variant: str
    """torchvision's name of the classifier."""

    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """The classifier with random weights and no auxiliary outputs. Raises ConfigError for an unknown name."""
        builder = self._builder()
        options: dict[str, Any] = {"weights": None}
        if self.variant in ("googlenet", "inception_v3"):  # further outputs for training, which a Net does not have
            options |= {"aux_logits": False, "init_weights": False}
        if self.variant.startswith("vit_"):  # the position embedding depends on the size
            options["image_size"] = image_size
        return builder(**options)  # type: ignore[no-any-return]

    def weights(self, name: str) -> Pretrained:
        """`imagenet` is torchvision's default; others by their names, such as IMAGENET1K_V1."""
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
                f"known: imagenet, none, {', '.join(known.__members__)}, or a .pth or .safetensors file",
            )
        crop = weights.transforms()
        preprocess = Preprocess(image_size=crop.crop_size[0], mean=tuple(crop.mean), std=tuple(crop.std))

        def load() -> dict[str, Any]:
            from inat_ft.models.weights import fetch_weights

            return fetch_weights(weights.url)

        return Pretrained(str(weights), load, preprocess)

    def _builder(self) -> Any:
        import torchvision
        from torchvision.models import get_model_builder, list_models

        names = list_models(module=torchvision.models)
        if self.variant not in names:
            from inat_ft.registry import BACKBONES, plugins

            known = [*(name for name in plugins(BACKBONES) if name != "torchvision"), *names]
            raise ConfigError(
                f"unknown backbone '{self.variant}'{did_you_mean(self.variant, known)}",
                "known: resnet50, any other classifier of torchvision, and "
                + ", ".join(name for name in plugins(BACKBONES) if name != "torchvision"),
            )
        return get_model_builder(self.variant)
