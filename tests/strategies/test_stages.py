import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet50

from inat_ft.config import build_strategy
from inat_ft.engine.plan import make_plan
from inat_ft.errors import PluginError
from inat_ft.models.net import Net, make_net
from inat_ft.settings import load_config
from inat_ft.strategies import Group, Strategy


@pytest.fixture(scope="module")
def net() -> Net:
    return make_net("resnet50", resnet50(), 10, 0.3)


def strategy(name: str, **options: object) -> Strategy:
    overrides = [("strategy.name", name), *((f"strategy.{key}", value) for key, value in options.items())]
    return build_strategy(load_config(None, overrides).strategy)


def seeds_own_rule(mode: str, unfreeze_from: str) -> set[str]:
    """The sets of trainable parameters as the task describes them, on torchvision's own model."""
    model = resnet50()
    names = {name for name, _ in model.named_parameters()}
    if mode == "head":
        return {name for name in names if name.startswith("fc")}
    if mode == "full":
        return names
    frozen, found = True, set()
    for child, module in model.named_children():
        frozen = frozen and child != unfreeze_from
        found |= set() if frozen else {f"{child}.{name}" for name, _ in module.named_parameters()}
    return found


@pytest.mark.parametrize(
    ("mode", "stage"),
    [
        ("head", ""),
        ("full", ""),
        *(("partial", stage) for stage in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")),
    ],
)
def test_what_learns_is_what_the_task_says(net: Net, mode: str, stage: str) -> None:
    options = {"unfreeze_from": stage} if stage else {}
    plan = make_plan(strategy(mode, **options), net, 1)
    net.set_trainable(plan.epochs[0].scales)
    learning = {net.original_name(name) for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == seeds_own_rule(mode, stage)


def test_partial_starts_at_layer3_unless_told_otherwise(net: Net) -> None:
    plan = make_plan(strategy("partial"), net, 1)
    assert plan.frozen_prefix(0) == net.stage_names.index("layer3")


def test_frozen_batch_norms_stay_in_eval_mode_whatever_is_called(net: Net) -> None:
    net.set_trainable(make_plan(strategy("partial", unfreeze_from="layer4"), net, 1).epochs[0].scales)
    net.eval()
    net.train()
    modes = {name: module.training for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    assert all(training == net.original_name(name).startswith("layer4") for name, training in modes.items())
    assert net.head[0].training


def test_a_pass_in_training_mode_moves_no_frozen_statistics(net: Net) -> None:
    net.set_trainable(make_plan(strategy("partial", unfreeze_from="layer4"), net, 1).epochs[0].scales)
    before = copy.deepcopy(net.original_state_dict())
    net.train()
    net(torch.rand(4, 3, 64, 64))
    moved = {
        name.split(".")[0]
        for name, tensor in net.original_state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"layer4"}


class Raises(Strategy):
    def groups(self, net: Net, epoch: int):
        raise KeyError("layer9")


class Nothing(Strategy):
    def groups(self, net: Net, epoch: int):
        return []


class Twice(Strategy):
    def groups(self, net: Net, epoch: int):
        return [Group(net.head.parameters()), Group(net.head.parameters())]


class Foreign(Strategy):
    def groups(self, net: Net, epoch: int):
        return [Group([torch.nn.Parameter(torch.zeros(1))])]


class Negative(Strategy):
    def groups(self, net: Net, epoch: int):
        return [Group(net.head.parameters(), lr_scale=-1.0)]


class NoGroups(Strategy):
    def groups(self, net: Net, epoch: int):
        return list(net.head.parameters())


class Exits(Strategy):
    def groups(self, net: Net, epoch: int):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Raises, r"failed in groups\(epoch=0\): KeyError: 'layer9'"),
        (Exits, r"failed in groups\(epoch=0\): SystemExit: 3"),
        (Nothing, "returned no trainable parameters for epoch 1"),
        (Twice, "returned a parameter in two groups"),
        (Foreign, "a parameter that the network does not have"),
        (Negative, "lr_scale must be 0 or more, not -1.0"),
        (NoGroups, "must return a list of Group"),
    ],
)
def test_a_strategy_that_breaks_the_contract_is_named(net: Net, bad: type[Strategy], message: str) -> None:
    with pytest.raises(PluginError, match=f"strategy {bad.__name__}.*{message}"):
        make_plan(bad(), net, 1)
