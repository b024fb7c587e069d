"""Every built-in strategy: its contract on a tiny network, and what changes in a real pretrained one."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from inat_ft.config import build_strategy
from inat_ft.engine.plan import make_plan
from inat_ft.engine.summary import stage_table
from inat_ft.errors import ConfigError
from inat_ft.models.build import build_model
from inat_ft.registry import STRATEGIES, plugins
from inat_ft.settings import load_config
from inat_ft.strategies import Group, Strategy
from inat_ft.testing import check_strategy, tiny_net
from inat_ft.training import Directories, train

NAMES = [name for name, claims in plugins(STRATEGIES).items() if claims[0].package == "inat-ft"]


def strategy(name: str, **options: object) -> Strategy:
    overrides = [("strategy.name", name), *((f"strategy.{key}", value) for key, value in options.items())]
    return build_strategy(load_config(None, overrides).strategy)


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_is_kept(name: str) -> None:
    check_strategy(strategy(name))


class Drifts(Strategy):
    """Answers differently each time."""

    def groups(self, net, epoch):
        drifts.append(1)
        return [Group(net.head.parameters(), float(len(drifts)))]


class Meddles(Strategy):
    """Changes a weight when asked."""

    def groups(self, net, epoch):
        with torch.no_grad():
            next(net.parameters()).add_(1)
        return [Group(net.head.parameters())]


drifts: list[int] = []


@pytest.mark.parametrize(
    ("bad", "message"), [(Drifts, "different groups in two calls for epoch 1"), (Meddles, "calling groups.. changed")]
)
def test_the_check_finds_what_breaks_the_contract(bad, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_strategy(bad())


def test_lp_ft_learns_the_head_first_and_the_rest_slowly() -> None:
    net = tiny_net()
    plan = make_plan(strategy("lp-ft", head_epochs=2, lr_scale=0.05), net, 4)
    assert [plan.frozen_prefix(epoch) for epoch in range(4)] == [4, 4, 0, 0]
    assert set(plan.epochs[3].scales.values()) == {0.05}


def test_gradual_adds_one_stage_every_k_epochs() -> None:
    plan = make_plan(strategy("gradual", every=2), tiny_net(), 12)
    assert [plan.frozen_prefix(epoch) for epoch in range(12)] == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0, 0]


def test_normalisation_alone_is_no_step_of_its_own() -> None:
    config = load_config(None, [("model.backbone", "efficientnet_lite0")])
    net = build_model(config.model, 3, 0, 64, load=False).net
    blocks = len([name for name in net.stage_names if name.startswith("blocks")])
    rows = {
        row["stage"]: row["lr"] for row in stage_table(make_plan(strategy("discriminative", decay=0.5), net, 1), 1.0)
    }
    assert rows["bn2"] == rows["conv_head"] == "0.5"
    assert rows["bn1"] == rows["conv_stem"] == f"{0.5 ** (blocks + 2):g}"

    plan = make_plan(strategy("gradual"), net, blocks + 4)
    assert net.stage_names[plan.frozen_prefix(1)] == "conv_head"
    assert [plan.frozen_prefix(blocks + 1 + extra) for extra in range(3)] == [2, 0, 0]


def test_lp_ft_warns_when_it_trains_only_the_head() -> None:
    assert strategy("lp-ft", head_epochs=2).warnings(3) == ()
    (info,) = strategy("lp-ft", head_epochs=2).warnings(2)
    assert "head_epochs is 2 and epochs is 2" in info


def test_bn_only_is_refused_where_there_is_no_batch_norm() -> None:
    config = load_config(None, [("model.backbone", "vgg11"), ("model.weights", "none")])
    net = build_model(config.model, 3, 0, 64).net
    with pytest.raises(ConfigError, match="vgg11 has no BatchNorm"):
        make_plan(strategy("bn-only"), net, 1)


@pytest.mark.parametrize(
    ("mode", "option", "hint"),
    [
        ("partial", "unfreeze_from", "try:    --unfreeze-from block3"),
        ("surgical", "block", "try:    --set strategy.block=block3"),
        ("lora", "adapt_from", "try:    --set strategy.adapt_from=block3"),
    ],
)
def test_an_unknown_stage_is_told_with_the_option_that_names_it(mode: str, option: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown stage 'xyz' for tiny") as caught:
        wrong, net = strategy(mode, **{option: "xyz"}), tiny_net()
        wrong.groups(wrong.adapt(net), 0)
    assert hint in caught.value.hint
    with pytest.raises(ConfigError, match="did you mean 'block2'") as caught:
        wrong = strategy(mode, **{option: "blok2"})
        wrong.groups(wrong.adapt(net), 0)
    assert "try:" not in caught.value.hint


def test_discriminative_rates_fall_stage_by_stage() -> None:
    net = tiny_net()
    rows = stage_table(make_plan(strategy("discriminative", decay=0.1), net, 1), 1.0)
    assert [row["lr"] for row in rows] == ["0.0001", "0.001", "0.01", "0.1", "1", ""]


def test_bn_only_and_bias_only_name_just_those() -> None:
    net = tiny_net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for mode, wanted in (("bn-only", ("1.weight", "1.bias")), ("bias-only", ("bias",))):
        plan = make_plan(strategy(mode), net, 1)
        learned = [names[id(parameter)] for parameter in plan.epochs[0].scales]
        assert all(name.endswith(wanted) or name.startswith("head.") for name in learned) and len(learned) > 4


def test_surgical_auto_takes_the_stage_that_is_pulled_at_most() -> None:
    net = tiny_net()
    ratios = {net.original_name(name): 9.0 if "block3" in name else 1.0 for name, _ in net.named_parameters()}
    chosen = strategy("surgical").resolve(net, lambda: ratios)
    assert chosen.block == "block3"
    assert strategy("surgical", block="block2").resolve(net, lambda: 1 / 0).block == "block2"


def test_auto_rgn_scales_by_the_largest_ratio_and_keeps_it_in_the_options() -> None:
    net = tiny_net()
    ratios = {net.original_name(name): 1.0 + place for place, (name, _) in enumerate(net.named_parameters())}
    chosen = strategy("auto-rgn").resolve(net, lambda: ratios)
    assert max(chosen.scales.values()) == 1.0 and chosen.resolve(net, lambda: 1 / 0) == chosen


def test_auto_rgn_trains_just_the_tensors_with_a_rate_and_knows_their_names() -> None:
    net = tiny_net()
    scaled = strategy("auto-rgn", scales={"block2.0.weight": 0.5, "block3.0.weight": 0.0})
    rows = {row["stage"]: row for row in stage_table(make_plan(scaled.resolve(net, lambda: 1 / 0), net, 1), 1.0)}
    assert (rows["block2"]["state"], rows["block2"]["trained"], rows["block2"]["lr"]) == ("part", 8 * 8 * 9, "0.5")
    assert {rows[name]["state"] for name in ("block1", "block3", "block4")} == {"frozen"}
    with pytest.raises(ConfigError, match=r"tiny has no tensor 'block2\.0\.wieght'.*did you mean 'block2\.0\.weight'"):
        strategy("auto-rgn", scales={"block2.0.wieght": 1.0}).resolve(net, lambda: 1 / 0)
    with pytest.raises(ConfigError, match="less than the minimum, 0"):
        strategy("auto-rgn", scales={"block2.0.weight": -1.0})


def test_lora_starts_as_the_network_and_merges_into_it() -> None:
    net, x = tiny_net().eval(), torch.rand(2, 3, 16, 16)
    before = net(x)
    lora = strategy("lora", rank=2, adapt_from="block1")
    adapted = lora.adapt(net)
    assert torch.equal(adapted(x), before)
    with torch.no_grad():
        for group in lora.groups(adapted, 0):
            for parameter in group.parameters:
                parameter.add_(0.1)
    changed = adapted(x)
    merged = lora.merge(adapted)
    assert torch.allclose(merged(x), changed, atol=1e-6) and not torch.allclose(changed, before)
    assert set(merged.original_state_dict()) == set(tiny_net().original_state_dict())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Crops of two real photographs as two classes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, photo in enumerate(load_sample_images().images):
        (folder / f"class{label}").mkdir()
        for number in range(8):
            x, y = rng.integers(0, 380), rng.integers(0, 180)
            Image.fromarray(photo[y : y + 240, x : x + 240]).save(folder / f"class{label}" / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "name", [name if name in ("partial", "lora") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_real_pretrained_network_changes_just_where_the_strategy_says(name: str, photographs, tmp_path, cli) -> None:
    from safetensors.torch import load_file

    from inat_ft.data.manifest import read_manifest

    assert (
        cli("split", photographs, "--out", "m.csv", "--no-near", "--val-fraction", "0.25", "--test-fraction", "0").code
        == 0
    )
    assert len(read_manifest(tmp_path / "m.csv").rows("train")) == 12
    settings = [("strategy.name", name), ("model.backbone", "efficientnet_lite0"), ("data.split", "m.csv")]
    settings += [("data.image_size", 64), ("optim.epochs", 3), ("optim.batch_size", 6), ("optim.lr", 0.01)]
    settings += [("compute.precision", "fp32"), ("stop.patience", 0)]
    config = load_config(None, settings)
    before = copy.deepcopy(build_model(config.model, 2, 0, 64).net.original_state_dict())
    record, directory = train(config, Directories(tmp_path / "runs", tmp_path / "cache"))
    after = load_file(directory / "model.safetensors")
    assert set(after) == set(before)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    net = build_model(config.model, 2, 0, 64).net
    chosen = build_strategy(load_config(directory / "config.yaml").strategy)
    plan = make_plan(chosen, chosen.adapt(net), record.best_epoch)
    named = {
        net.original_name(key).replace(".parametrizations.weight.original", ".weight")
        for key in plan.trainable_state_names()
    }
    if name == "lora":
        named = {
            key.rsplit(".parametrizations", 1)[0] + ".weight" if ".parametrizations" in key else key for key in named
        }
    assert changed <= named and {"classifier.weight", "classifier.bias"} <= changed
    if name in ("head", "partial", "full", "lp-ft", "discriminative"):
        assert changed == named


def test_the_example_plugin_leaves_features_alive() -> None:
    source = Path(__file__).parents[2] / "examples" / "plugins" / "strategy" / "every_other.py"
    spec = importlib.util.spec_from_file_location("every_other", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check_strategy(module.EveryOther(alpha=0.5))

    config = load_config(None, [("model.backbone", "efficientnet_lite0")])
    net = build_model(config.model, 10, 0, 32).net
    net.set_trainable(make_plan(module.EveryOther(), net, 1).epochs[0].scales)
    digits = torch.from_numpy(load_digits().images[:64]).float()[:, None].repeat(1, 3, 4, 4) / 4 - 2
    with torch.no_grad():
        features = net.train().forward_stages(digits, 0, len(net.stages))
    assert features.std(0).mean() > 0.01
