"""Which parameters and statistics a network freezes, and which weights it accepts."""

import pytest
import torch
from torch import nn

from inat_ft.errors import ConfigError, WeightsError
from inat_ft.models.dropout import Dropout
from inat_ft.models.net import Net, make_net


def stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.Dropout(0.5))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    head = nn.Sequential(Dropout(0.1), nn.Linear(4, 3))
    return Net("tiny", {"stem": stage(2, 4), "middle": stage(4, 4), "last": stage(4, 4)}, head, "fc", seed=5)


def trainable(net: Net) -> set[str]:
    return {net.original_name(name).partition(".")[0] for name, each in net.named_parameters() if each.requires_grad}


def test_names_and_stages(net: Net) -> None:
    assert net.stage_names == ("stem", "middle", "last") == tuple(net.stages)
    assert (net.num_classes, net.default_stage, net.seed, net.name, net.head_name) == (3, "last", 5, "tiny", "fc")
    assert net.stages["middle"] is net._chain[1]
    five = Net("five", {str(number): nn.Identity() for number in range(5)}, net.head, "fc")
    assert (five.default_stage, five.seed) == ("3", 0)
    assert net.original_name("_chain.1.0.weight") == "0.weight" and net.original_name("head.1.weight") == "fc.weight"
    assert net.original_name("head.1.head.1") == "fc.head.1"


def test_the_forward_pass_starts_and_ends_where_it_is_told_to(net: Net) -> None:
    net.eval()
    inputs = torch.randn(5, 2)
    middle = net.forward_stages(inputs, 0, 1)
    assert torch.equal(middle, net.stages["stem"](inputs))
    assert torch.equal(net.forward_stages(inputs, 0, 0), inputs)
    assert torch.equal(net.head(net.forward_stages(middle, 1, 3)), net(inputs)) and net(inputs).shape == (5, 3)
    assert torch.equal(net(inputs), net.head(net.forward_stages(inputs, 0, 3)))


def test_stages_from_a_name(net: Net) -> None:
    stages = list(net.stages.values())
    assert net.stages_from("stem") == stages and net.stages_from("last") == stages[2:] and net.stages_from("fc") == []
    with pytest.raises(ConfigError, match="unknown stage 'midle' for tiny: did you mean 'middle'") as caught:
        net.stages_from("midle", "--unfreeze-from ")
    assert caught.value.hint == "it has: stem middle last fc"
    with pytest.raises(ConfigError) as caught:
        net.stages_from("xyz", "--unfreeze-from ")
    assert caught.value.hint == "it has: stem middle last fc\ntry:    --unfreeze-from middle"
    with pytest.raises(ConfigError) as caught:
        net.stages_from("xyz")
    assert caught.value.hint == "it has: stem middle last fc"


def test_only_what_is_named_is_trainable(net: Net) -> None:
    assert all(net.is_trainable(each) for each in (net, *net.stages.values(), net.head))
    net.set_trainable([*net.stages["last"].parameters(), *net.head.parameters()])
    assert [net.is_trainable(each) for each in (*net.stages.values(), net.head)] == [False, False, True, True]
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == name.startswith(("_chain.2", "head")), name
    net.set_trainable(net.stages["stem"].parameters())
    assert [each.requires_grad for each in net.head.parameters()] == [False, False]
    assert all(each.requires_grad for each in net.stages["stem"].parameters())


def test_frozen_stages_and_norms_stay_in_eval_mode(net: Net) -> None:
    assert net.train() is net and all(module.training for module in net.modules())
    middle = net.stages["middle"]
    net.set_trainable([*middle[0].parameters(), *net.stages["last"].parameters(), *net.head.parameters()])
    net.train()
    assert net.training and net.head.training and net.stages["last"][1].training and net.stages["last"][2].training
    assert not any(module.training for module in net.stages["stem"].modules())
    assert (middle.training, middle[0].training, middle[1].training, middle[2].training) == (True, True, False, True)
    assert net.train(False) is net and not any(module.training for module in net.modules())
    statistics = [norm.running_mean.clone() for norm in net.batch_norms()]
    net.train()(torch.randn(8, 2))
    changed = [not torch.equal(norm.running_mean, old) for norm, old in zip(net.batch_norms(), statistics, strict=True)]
    assert changed == [False, False, True]
    assert list(net.batch_norms(middle)) == [middle[1]] and len(list(net.batch_norms())) == 3


def test_eval_mode_is_entered_through_training_mode(net: Net) -> None:
    """Some attention layers discard a stale tensor only when they enter training mode."""
    modes = []

    class Recorder(nn.Module):
        def train(self, mode: bool = True) -> nn.Module:
            modes.append(mode)
            return super().train(mode)

    net._chain.append(Recorder())
    net.eval()
    assert modes == [True, False]


def test_a_copy_with_its_own_head_shares_the_stages(net: Net) -> None:
    net.layer_ids, net.no_weight_decay = {"fc.weight": 3}, frozenset({"fc.bias"})
    other = net.with_own_head(0.7)
    assert [a is b for a, b in zip(other._chain, net._chain, strict=True)] == [True] * 3
    assert (other.head[0].p, net.head[0].p, other.seed, other.name) == (0.7, 0.1, 5, "tiny")
    assert (other.layer_ids, other.no_weight_decay) == (net.layer_ids, net.no_weight_decay)
    assert torch.equal(other.head[1].weight, net.head[1].weight) and other.head[1].weight is not net.head[1].weight


@pytest.fixture
def whole() -> Net:
    """A network whose parameter names are unique in the original classifier."""
    layers = {"a": nn.Linear(2, 4), "b": nn.BatchNorm1d(4)}
    stages = {name: nn.Sequential() for name in layers}
    for name, layer in layers.items():
        stages[name].add_module(name, layer)
    return Net("whole", stages, nn.Sequential(Dropout(0.0), nn.Linear(4, 3)), "fc")


def test_weights_are_loaded_by_their_original_names(whole: Net) -> None:
    state = {name: tensor.clone() for name, tensor in whole.original_state_dict().items()}
    assert {"a.weight", "b.running_mean", "b.num_batches_tracked", "fc.bias"} <= set(state)
    assert whole.original_state_dict()["a.weight"].data_ptr() == whole._chain[0].a.weight.data_ptr()
    state["a.weight"].fill_(2.0)
    state["b.num_batches_tracked"].fill_(7)
    state["fc.bias"] = torch.full((3,), 3.0, dtype=torch.float16)
    whole.load_original_state_dict(state, "file")
    assert bool((whole._chain[0].a.weight == 2).all()) and int(whole._chain[1].b.num_batches_tracked) == 7
    assert bool((whole.head[1].bias == 3).all()) and whole.head[1].bias.requires_grad


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a.weight": None}, r"file does not fit this network: 1 missing \(a.weight\)$"),
        ({"x": torch.zeros(1)}, r"file does not fit this network: 1 unexpected \(x\)$"),
        ({"a.weight": None, "x": torch.zeros(1)}, r"1 missing \(a.weight\) 1 unexpected \(x\)$"),
        ({f"x{n}": torch.zeros(1) for n in range(3)}, r"3 unexpected \(x0, x1, x2\)$"),
        ({f"x{n}": torch.zeros(1) for n in range(4)}, r"4 unexpected \(x0, x1, x2, ...\)$"),
        ({"a.weight": torch.zeros(4, 3)}, r"file does not fit this network: a.weight is \(4, 3\), not \(4, 2\)"),
        ({"a.bias": torch.zeros(4, dtype=torch.int64)}, "a.bias is int64, not float32"),
        ({"a.bias": torch.zeros(4, dtype=torch.complex64)}, "a.bias is complex64, not float32"),
        ({"b.num_batches_tracked": torch.tensor(1.5)}, "b.num_batches_tracked is float32, not int64"),
        ({"a.bias": torch.tensor([0.0, 1.0, 2.0, float("nan")])}, "file contain values that are not finite, in a.bias"),
        ({"fc.bias": torch.full((3,), float("inf"))}, "not finite, in fc.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(whole: Net, change: dict, says: str) -> None:
    before = {name: tensor.clone() for name, tensor in whole.original_state_dict().items()}
    state = {name: tensor.clone() + 1 for name, tensor in before.items()} | change
    with pytest.raises(WeightsError, match=says):
        whole.load_original_state_dict({name: each for name, each in state.items() if each is not None}, "file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.original_state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floating_types_are_converted(whole: Net, dtype: torch.dtype) -> None:
    state = {
        name: each.to(dtype) if each.is_floating_point() else each for name, each in whole.original_state_dict().items()
    }
    whole.load_original_state_dict(state, "file")
    assert whole.head[1].weight.dtype == torch.float32


def test_a_new_head_replaces_the_last_layer() -> None:
    classifier = nn.Sequential()
    classifier.add_module("body", nn.Sequential(nn.Linear(2, 4), nn.ReLU()))
    classifier.add_module("fc", nn.Linear(4, 10, bias=False))
    net = make_net("n", classifier, 3, 0.25, seed=9)
    assert (net.num_classes, net.head[0].p, net.head[1].bias, net.head[1].in_features, net.seed) == (
        3,
        0.25,
        None,
        4,
        9,
    )
    assert net.layer_ids and net.head_name == "fc"
    assert make_net("n", classifier, 3, 0.25).seed == 0
