"""The conformance checks accept what works and say what does not."""

import pytest
import torch
from inat_ft_cnn.cnn import Cnn
from torch import nn

from inat_ft.errors import PluginError
from inat_ft.models import Backbone
from inat_ft.testing import check_backbone


def stack(*layers: nn.Module) -> nn.Sequential:
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), *layers, nn.ReLU(), *pool)


class _Detached(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.detach()


class _Batch(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features - features.mean(0, keepdim=True)


class Made(Backbone):
    kind: str

    def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
        if self.kind in ("none", "headless"):
            return None if self.kind == "none" else nn.Identity()
        return stack(*{"good": (), "detached": (_Detached(),), "mixed": (_Batch(),)}[self.kind])


def test_built_in_and_small_backbones_pass() -> None:
    check_backbone(Cnn(filters=16), image_size=32)
    check_backbone(Made(kind="good"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "build.. returned None"),
        ("detached", r"no gradient for 0\.weight"),
        ("mixed", "the logits of an image depend on the others"),
    ],
)
def test_a_backbone_that_breaks_the_contract_is_refused(kind: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backbone(Made(kind=kind))


def test_a_network_without_a_last_linear_layer_is_refused() -> None:
    with pytest.raises(PluginError):
        check_backbone(Made(kind="headless"))
