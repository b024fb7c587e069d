"""What optimizers ask of a classifier, compared with timm's own groups."""

from collections import Counter

import pytest
import torch
import torchvision
from inat_ft_strategies.lora import Lora
from torch import nn

from inat_ft.config import OptimConfig
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import make_plan
from inat_ft.models.layers import layer_ids
from inat_ft.models.net import make_net
from inat_ft.strategies import Group, Strategy

timm = pytest.importorskip("timm")
optim = pytest.importorskip("timm.optim")


class All(Strategy):
    def groups(self, net, epoch):
        return [Group(net.parameters())]


def ours(net) -> dict[str, tuple[float, float]]:
    """Of each parameter: factor on the learning rate, and weight decay."""
    optimizer = make_optimizer(make_plan(All(), net, 1, layer_decay=0.75).epochs[0], OptimConfig(weight_decay=0.1))
    names = {id(parameter): net.original_name(name) for name, parameter in net.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def theirs(model) -> dict[str, tuple[float, float]]:
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim.param_groups_layer_decay(model, 0.1, spared, layer_decay=0.75)
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "beit_base_patch16_224",
        "convnext_atto",
        "efficientnet_b0",
    ],
)
def test_layers_and_weight_decay_of_a_timm_model_are_timms(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    expected = theirs(model)
    found = ours(make_net(name, model, 3, 0.0))
    assert found.keys() == expected.keys()
    for parameter, (scale, decay) in expected.items():
        assert found[parameter] == (pytest.approx(scale), decay), parameter


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("resnet50", "resnet50"),
        ("resnet18", "resnet18"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("convnext_tiny", "convnext_tiny"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("efficientnet_v2_s", "tf_efficientnetv2_s"),
        ("regnet_y_400mf", "regnety_004"),
        ("mobilenet_v2", "mobilenetv2_100"),
    ],
)
def test_layers_of_a_torchvision_model_are_those_of_the_same_model_in_timm(name: str, same: str) -> None:
    def sizes(model: nn.Module, ids: dict[str, int]) -> Counter[int]:
        return Counter({n: sum(p.numel() for k, p in model.named_parameters() if ids[k] == n) for n in ids.values()})

    model, other = getattr(torchvision.models, name)(weights=None), timm.create_model(same)
    head = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    assert sizes(model, layer_ids(model, head)) == sizes(other, layer_ids(other, ""))


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("vit_b_16", ["class_token", "encoder.pos_embedding"]),
        ("swin_t", ["features.1.0.attn.relative_position_bias_table"]),
        ("convnext_tiny", ["features.1.0.layer_scale"]),
    ],
)
def test_weight_decay_spares_embeddings_tables_and_layer_scales(name: str, spared: list[str]) -> None:
    model = getattr(torchvision.models, name)(weights=None)
    found = ours(make_net(name, model, 3, 0.0))
    parameters = dict(model.named_parameters())
    assert all(parameters[each].ndim > 1 and found[each][1] == 0 for each in spared)
    weights = [each for each, parameter in parameters.items() if each.endswith("weight") and parameter.ndim > 1]
    assert all(found[each][1] == 0.1 for each in weights if each in found)


def test_what_a_module_lists_is_spared() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 1))
            self.other = nn.Parameter(torch.ones(4, 1))

        def no_weight_decay(self) -> set[str]:
            return {"scale"}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (self.scale * self.other)[:, :, None]

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Odd(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    found = ours(make_net("odd", model, 3, 0.0))
    assert found["1.scale"][1] == 0 and found["1.other"][1] == found["0.weight"][1] == 0.1


def test_an_adapter_belongs_to_the_layer_of_its_weight() -> None:
    net = make_net("resnet18", torchvision.models.resnet18(), 3, 0.0)
    whole = ours(net)
    adapted = ours(Lora(adapt_from="layer3").adapt(net))
    added = adapted.keys() - whole.keys()
    assert added and all(adapted[name][0] == whole[f"{name.split('.parametrizations')[0]}.weight"][0] for name in added)
