"""Each strategy on a small member of each family: it trains what its page says, or refuses."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from inat_ft_strategies.gradients import relative_gradient_norms
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from inat_ft.config import build_strategy
from inat_ft.engine.device import Compute
from inat_ft.engine.plan import TrainingPlan, make_plan
from inat_ft.errors import ConfigError
from inat_ft.models.base import Preprocess
from inat_ft.models.net import Net, make_net
from inat_ft.registry import STRATEGIES, plugins
from inat_ft.settings import load_config
from inat_ft.strategies import Strategy
from tests.conftest import make_images
from tests.strategies.small import FAMILIES, SIZE, classifier, small_net

pytestmark = pytest.mark.slow

NAMES = [name for name, claims in plugins(STRATEGIES).items() if claims[0].package == "inat-ft"]
NO_BATCH_NORM = {
    *("squeezenet1_1", "convnext", "vit", "swin", "swin_v2", "timm:vit", "timm:beit", "timm:beit2"),
    *("timm:convnext", "timm:swin", "timm:nfnet", "timm:sequencer"),
}
LABELS = torch.tensor([0, 1, 2])


def strategy(name: str, **options: object) -> Strategy:
    overrides = [("strategy.name", name), *((f"strategy.{key}", value) for key, value in options.items())]
    return build_strategy(load_config(None, overrides).strategy)


@cache
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def biases_by_module(network: nn.Module) -> set[str]:
    """The names of all biases, by the types of the modules that hold them."""
    found = set()
    for path, module in network.named_modules():
        own = {f"{path}.{name}": name for name, _ in module.named_parameters(recurse=False)}
        if isinstance(module, nn.MultiheadAttention):
            found |= {full for full, name in own.items() if name == "in_proj_bias"}
        elif isinstance(module, nn.LSTM):
            found |= {full for full, name in own.items() if "bias" in name}
        else:  # q_bias and v_bias: attention of BEiT
            found |= {full for full, name in own.items() if name in ("bias", "q_bias", "v_bias")}
    return found


def matrices_by_module(network: nn.Module, stages: tuple[str, ...]) -> set[str]:
    """The names of the weights that lora adapts in some stages, by the types of the modules that hold them."""
    found = set()
    for path, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found.add(f"{path}.in_proj_weight")
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            found.add(f"{path}.weight")
    return {name for name in found if name.startswith(stages)}


def expected(name: str, net: Net, family: str) -> set[str]:
    """The names that a strategy trains, found without its code; those of adapters are the names of their weights."""
    everything = {net.original_name(each) for each, _ in net.named_parameters()}
    head = {each for each in everything if each.startswith(f"{net.head_name}.")}
    of_stage = {stage: {each for each, _ in module.named_parameters()} for stage, module in net.stages.items()}
    last = list(net.stages)[len(net.stages) * 2 // 3 :]
    if name in ("head", "partial", "surgical"):
        chosen = {"head": [], "partial": last, "surgical": list(net.stages)[1:2]}[name]
        return head.union(*(of_stage[stage] for stage in chosen))
    if name == "bn-only":
        norms = {path for path, module in classifier(family).named_modules() if isinstance(module, _BatchNorm)}
        return head | {each for each in everything if each.rpartition(".")[0] in norms}
    if name == "bias-only":
        return head | (biases_by_module(classifier(family)) & everything)
    if name == "lora":
        inside = set().union(*(of_stage[stage] for stage in last))
        return head | {each for each in matrices_by_module(classifier(family), ("",)) if each in inside}
    return everything


def learned_names(net: Net, plan: TrainingPlan) -> set[str]:
    names = {
        net.original_name(each) for each, parameter in net.named_parameters() if id(parameter) in plan.trainable_ids
    }
    return {_adapted_name(name) for name in names}


def _adapted_name(name: str) -> str:
    """`blocks.0.attn.qkv.parametrizations.weight.0.up`: of `blocks.0.attn.qkv.weight`."""
    module, found, rest = name.partition(".parametrizations.")
    return f"{module}.{rest.split('.')[0]}" if found else name


def prepared(name: str, family: str) -> tuple[Net, TrainingPlan, Strategy]:
    net = small_net(family)
    options = {"block": net.stage_names[1]} if name == "surgical" else {}
    asked = strategy(name, **options).resolve(
        net, lambda: {net.original_name(each): 1.0 for each, _ in net.named_parameters()}
    )
    net = asked.adapt(net)
    return net, make_plan(asked, net, 40), asked


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_trains_what_its_page_says_and_each_of_it_gets_a_gradient(name: str, family: str) -> None:
    if name == "bn-only" and family in NO_BATCH_NORM:
        with pytest.raises(ConfigError, match=f"^{family} has no BatchNorm"):
            prepared(name, family)
        return
    wanted = expected(name, small_net(family), family)
    net, plan, _ = prepared(name, family)
    assert learned_names(net, plan) == wanted and wanted
    learning = {each: parameter for each, parameter in net.named_parameters() if id(parameter) in plan.trainable_ids}
    net.set_trainable(learning.values())
    with torch.no_grad():
        for each, parameter in learning.items():
            if each.endswith(".up"):  # zero at first, so that `down` would get a gradient of zeros
                parameter.add_(0.01)
    F.cross_entropy(net(images()), LABELS).backward()
    without = [each for each, parameter in net.named_parameters() if (parameter.grad is None) == (each in learning)]
    assert not without
    assert not [each for each, parameter in learning.items() if not parameter.grad.any()]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_merges_into_a_network_that_computes_the_same_and_loads_into_the_original(family: str) -> None:
    net, plan, lora = prepared("lora", family)
    untouched = small_net(family)
    with torch.no_grad():
        torch.testing.assert_close(net(images()), untouched(images()), rtol=0, atol=0)
        for parameter in net.parameters():
            if id(parameter) in plan.trainable_ids:
                parameter.add_(0.02)
        adapted = net(images())
    merged = lora.merge(net)
    with torch.no_grad():
        torch.testing.assert_close(merged(images()), adapted, rtol=0, atol=0)
    assert not torch.allclose(adapted, untouched(images()), atol=1e-4)
    assert set(merged.original_state_dict()) == set(untouched.original_state_dict())
    assert not [each for each in merged.modules() if type(each).__name__.startswith("Parametrized")]
    own = classifier(family, seed=1)
    own.get_submodule(merged.head_name).weight = nn.Parameter(torch.empty_like(merged.head[1].weight))
    if merged.head[1].bias is not None:
        own.get_submodule(merged.head_name).bias = nn.Parameter(torch.empty_like(merged.head[1].bias))
    own.load_state_dict(merged.original_state_dict())
    with torch.no_grad():
        torch.testing.assert_close(own(images()), adapted)


class Two(nn.Module):
    """A layer with a second name, a weight norm and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, groups=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.normed(self.depthwise(self.conv(x)).mean((2, 3))))


def test_lora_leaves_weights_with_a_parametrization_of_their_own_alone() -> None:
    net = make_net("two", Two(), 5, 0.0)
    before = set(net.original_state_dict())
    lora = strategy("lora", adapt_from=net.stage_names[0])
    adapted = lora.adapt(net)
    plan = make_plan(lora, adapted, 1)
    assert learned_names(adapted, plan) == {"conv.weight", "fc.weight", "fc.bias"}
    assert set(lora.merge(adapted).original_state_dict()) == before


class NoBias(nn.Module):
    """Only grouped convolutions without a bias before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, groups=3, bias=False)
        self.b = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x)).mean((2, 3)))


@pytest.mark.parametrize("name", ["lora", "bias-only", "bn-only"])
def test_a_strategy_with_nothing_to_train_but_the_head_refuses_and_names_what_fits(name: str) -> None:
    net = make_net("plain", NoBias(), 5, 0.0)
    asked = strategy(name)
    with pytest.raises(ConfigError, match=f"^plain has no .*{name} has nothing to") as caught:
        make_plan(asked, asked.adapt(net), 1)
    assert caught.value.exit_code == 2 and "--mode head" in caught.value.hint


def test_lora_from_the_head_on_refuses() -> None:
    net = small_net("vit")
    for first in (net.head_name, "encoder.ln"):
        with pytest.raises(ConfigError, match=f"from '{first}' on: lora has nothing to adapt"):
            strategy("lora", adapt_from=first).adapt(small_net("vit"))


def test_adapters_start_from_the_seed_of_the_run_and_differ_between_layers_of_one_shape() -> None:
    def starts(seed: int) -> dict[str, Tensor]:
        net = strategy("lora", adapt_from="encoder.layers.encoder_layer_0").adapt(small_net("vit", seed))
        return {name: tensor for name, tensor in net.original_state_dict().items() if name.endswith(".down")}

    first, again, other = starts(0), starts(0), starts(1)
    assert len(first) == 16 and all(torch.equal(first[name], again[name]) for name in first)
    assert not [name for name in first if torch.equal(first[name], other[name])]
    values = [tuple(tensor.flatten().tolist()) for tensor in first.values()]
    assert len(set(values)) == len(values)
    later = (
        strategy("lora").adapt(small_net("vit", 0)).original_state_dict()
    )  # fewer stages: the same start in each of them
    assert all(torch.equal(later[name], first[name]) for name in later if name.endswith(".down"))


def test_adapters_are_made_on_the_device_and_in_the_type_of_their_weight() -> None:
    for place in ({"device": "meta"}, {"dtype": torch.float64}):
        net = small_net("vit").to(**place)
        adapted = strategy("lora").adapt(net)
        assert {(parameter.device.type, parameter.dtype) for parameter in adapted.parameters()} == {
            (net.head[1].weight.device.type, net.head[1].weight.dtype)
        }


def test_no_layer_keeps_what_it_computed_from_weights_that_have_changed() -> None:
    """TinyViT keeps position biases in evaluation, until it is set to training mode."""
    net, other = small_net("timm:tiny_vit").eval(), classifier("timm:tiny_vit", seed=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    with torch.inference_mode():
        net(images())
    net.load_original_state_dict(other.state_dict(), "other")
    with torch.no_grad():
        made, wanted = net.eval()(images()), other(images())
    torch.testing.assert_close(made, wanted)


def test_gradients_are_measured_over_several_batches_on_a_layer_that_keeps_tensors(tmp_path: Path) -> None:
    paths = sorted(make_images(tmp_path / "photos", each=12, size=SIZE).rglob("*.png"))
    net, labels = small_net("timm:tiny_vit"), torch.arange(len(paths)) % 3
    compute = Compute(torch.device("cpu"), "fp32", forced=True)
    ratios = relative_gradient_norms(net, paths, labels, Preprocess(image_size=SIZE), compute)
    assert len(paths) > 32 and set(ratios) == {net.original_name(name) for name, _ in net.named_parameters()}
