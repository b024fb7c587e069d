"""timm's classifiers as `timm:NAME`, with timm's weights. Needs the extra `timm`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from inat_ft.errors import ConfigError, WeightsError, did_you_mean
from inat_ft.models.base import Backbone, Preprocess, PretrainedWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILE = "model.safetensors"


class Timm(Backbone):
    """A classifier of timm, such as timm:resnet10t or, with the tag of its weights, timm:resnet10t.c3_in1k."""

    pretrained: ClassVar[bool] = True

    variant: str
    """timm's name of the classifier."""

    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """The classifier with random weights. Raises ConfigError for an unknown name."""
        classifier: nn.Module = import_timm().create_model(
            self.variant, num_classes=num_classes, **self._sized(image_size)
        )
        return classifier

    def weights(self, name: str) -> PretrainedWeights:
        """`imagenet` is timm's default for this name; others belong to names with their tag."""
        said = self._said()
        if name != "imagenet":
            raise WeightsError(
                f"timm:{self.variant} has no weights '{name}'",
                f"name them by their tag: --backbone timm:{said.architecture}.TAG, or give a .pth or .safetensors file",
            )
        if not (said.hf_hub_id or "").startswith("timm/"):
            raise WeightsError(
                f"timm has no weights of its own for {self.variant}",
                "start from scratch: --weights none, or give a file",
            )
        preprocess = Preprocess(image_size=said.input_size[-1], mean=tuple(said.mean), std=tuple(said.std))
        smallest = max(said.min_input_size[1:]) if said.min_input_size else 1
        return PretrainedWeights(str(said.hf_hub_id), self._load, preprocess, smallest)

    def _load(self) -> dict[str, Tensor]:
        """timm renames what older files name otherwise; reading and fetching them stays with us."""
        from huggingface_hub import try_to_load_from_cache

        from inat_ft.models.weights import fetch_weights, read_state

        said = self._said()
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

    def _said(self) -> Any:
        """What timm knows of the weights: where they are and what they take."""
        timm = import_timm()
        try:
            said = timm.get_pretrained_cfg(self.variant)
        except RuntimeError as error:  # a tag that it does not have
            name = self.variant.partition(".")[0]
            tagged = [each for each in timm.list_pretrained(f"{name}.*") if each.startswith(f"{name}.")]
            raise ConfigError(f"timm: {str(error).lower()}", f"it has: {', '.join(tagged)}") from None
        if said is None or not timm.is_model(self.variant):
            near = did_you_mean(self.variant, timm.list_models())
            raise ConfigError(
                f"timm has no classifier '{self.variant}'{near}",
                "all: python -c 'import timm; print(timm.list_models())'",
            )
        return said

    def _sized(self, image_size: int) -> dict[str, int]:
        said = self._said()
        return {"img_size": image_size} if said.fixed_input_size and image_size != said.input_size[-1] else {}


def import_timm(extra: str = "timm") -> Any:
    """The package timm. Raises WeightsError with the command that installs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside timm
            import timm
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"timm's networks need the package {error.name}, which is not installed", f"pip install 'inat-ft[{extra}]'"
        ) from None
    return timm
