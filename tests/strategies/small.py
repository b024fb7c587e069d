"""Small members of the families of networks, with the parts that the large ones have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from inat_ft.models.net import Net, make_net
from inat_ft.models.torchvision import Torchvision

SIZE = 32


def _swin(**options: object) -> nn.Module:
    return SwinTransformer([2, 2], 8, [2, 2, 2], [1, 2, 4], [4, 4], num_classes=5, **options)


def _convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)], num_classes=5)


def _maxvit() -> nn.Module:
    return tv.MaxVit((SIZE, SIZE), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=5)


def _timm(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=5, **options)


_TOKENS = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": tv.resnet18,
    "mobilenet_v3_small": tv.mobilenet_v3_small,
    "regnet_y_400mf": tv.regnet_y_400mf,
    "squeezenet1_1": lambda: Torchvision(variant="squeezenet1_1").build(5, SIZE, 0.0),
    "convnext": _convnext,
    "vit": lambda: tv.VisionTransformer(SIZE, 8, 4, 2, 32, 64, num_classes=5),
    "swin": _swin,
    "swin_v2": partial(_swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "maxvit": _maxvit,
    "timm:vit": partial(_timm, "vit_tiny_patch16_224", **_TOKENS),
    "timm:beit": partial(_timm, "beit_base_patch16_224", **_TOKENS),
    "timm:beit2": partial(_timm, "beitv2_base_patch16_224", use_shared_rel_pos_bias=True, use_rel_pos_bias=False, **_TOKENS),
    "timm:convnext": partial(_timm, "test_convnext"),
    "timm:swin": partial(
        _timm, "swin_tiny_patch4_window7_224", img_size=SIZE, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
    ),
    "timm:tiny_vit": partial(
        _timm, "tiny_vit_5m_224", embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2),
        window_sizes=(2, 2, 2, 2),
    ),
    "timm:resnet": partial(_timm, "test_resnet"),
    "timm:nfnet": partial(_timm, "test_nfnet"),
    "timm:sequencer": partial(
        _timm, "sequencer2d_s", layers=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), hidden_sizes=(2, 4, 4, 4)
    ),
}  # fmt: skip


def classifier(name: str, seed: int = 0) -> nn.Module:
    """The ordinary network, in which no vector is zero and no scale is tiny."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = FAMILIES[name]()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim < 2 or not parameter.any():
                    parameter.add_(torch.rand_like(parameter) * 0.1)
        return made.eval()


def small_net(name: str, seed: int = 0) -> Net:
    """The same as a Net of five classes."""
    return copy.deepcopy(_net(name, seed))


@cache
def _net(name: str, seed: int) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_net(name, classifier(name), 5, 0.0, seed).eval()
