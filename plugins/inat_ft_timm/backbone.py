"""timm classifiers as `timm:NAME`, with timm's weights. Requires the extra `timm`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from inat_ft.errors import ConfigError, WeightsError, did_you_mean
from inat_ft.models.base import Backbone, Preprocess, PretrainedWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILE = "model.safetensors"
_RESIZE: dict[str, Literal["squash", "crop", "pad"]] = {"squash": "squash", "center": "crop", "border": "pad"}
"""timm's crop modes."""


class Timm(Backbone):
    """A timm classifier, such as timm:resnet10t or, with the tag of its weights, timm:resnet10t.c3_in1k."""

    pretrained: ClassVar[bool] = True

    variant: str
    """Name of the classifier in timm."""

    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """Return the classifier with random weights. Raises ConfigError for an unknown name."""
        classifier: nn.Module = import_timm().create_model(
            self.variant, num_classes=num_classes, **self._sized(image_size)
        )
        return classifier

    def weights(self, name: str) -> PretrainedWeights:
        """Return timm's default weights for `imagenet`. Other weights are selected by a tag in the name of the classifier."""
        said = self._pretrained_cfg()
        if name != "imagenet":
            raise WeightsError(
                f"timm:{self.variant} has no weights '{name}'",
                f"select them by their tag: --backbone timm:{said.architecture}.TAG, or give a .pth or .safetensors file",
            )
        if not (said.hf_hub_id or "").startswith("timm/"):
            raise WeightsError(
                f"timm does not provide weights for {self.variant}",
                "train from scratch: --weights none, or pass a file: --weights FILE",
            )
        mean = tuple(said.mean)
        preprocess = Preprocess(
            image_size=said.input_size[-1],
            resize=_RESIZE[said.crop_mode],
            interpolation=said.interpolation,
            crop_pct=said.crop_pct,
            fill=tuple(round(255 * value) for value in mean) if said.crop_mode == "border" else (0, 0, 0),
            mean=mean,
            std=tuple(said.std),
        )
        smallest = max(said.min_input_size[1:]) if said.min_input_size else 1
        return PretrainedWeights(str(said.hf_hub_id), self._load, preprocess, smallest)

    def _load(self) -> dict[str, Tensor]:
        """Return the state dict. timm renames tensors of older files; reading and downloading use our own functions."""
        from huggingface_hub import try_to_load_from_cache

        from inat_ft.models.weights import fetch_weights, read_state

        said = self._pretrained_cfg()
        file, home = said.hf_hub_filename or _FILE, os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        cached = try_to_load_from_cache(said.hf_hub_id, file)
        state = (
            read_state(Path(cached))
            if isinstance(cached, str)
            else fetch_weights(
                f"{home}/{said.hf_hub_id}/resolve/main/{file}", f"{said.hf_hub_id}-{file}".replace("/", "-")
            )
        )
        classifier = import_timm().create_model(
            self.variant, pretrained=True, pretrained_cfg_overlay={"state_dict": state}
        )
        return dict(classifier.state_dict())

    def _pretrained_cfg(self) -> Any:
        """Return timm's configuration of the weights: their location and input."""
        timm = import_timm()
        try:
            said = timm.get_pretrained_cfg(self.variant)
        except RuntimeError as error:  # an unknown tag
            name = self.variant.partition(".")[0]
            tagged = [each for each in timm.list_pretrained(f"{name}.*") if each.startswith(f"{name}.")]
            raise ConfigError(f"timm: {str(error).lower()}", f"available: {', '.join(tagged)}") from None
        if said is None or not timm.is_model(self.variant):
            near = did_you_mean(self.variant, timm.list_models())
            raise ConfigError(
                f"unknown timm classifier '{self.variant}'{near}",
                "list them: python -c 'import timm; print(timm.list_models())'",
            )
        return said

    def _sized(self, image_size: int) -> dict[str, int]:
        said = self._pretrained_cfg()
        return {"img_size": image_size} if said.fixed_input_size and image_size != said.input_size[-1] else {}


def import_timm(extra: str = "timm") -> Any:
    """Return the timm package. Raises WeightsError with the command that installs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside timm
            import timm
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"timm backbones require the package {error.name}, which is not installed",
            f"pip install 'inat-ft[{extra}]'",
        ) from None
    return timm
