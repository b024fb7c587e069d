import urllib.request

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model, resnet50

from inat_ft.config import ModelConfig
from inat_ft.errors import ConfigError, PluginError, WeightsError
from inat_ft.models import Backbone
from inat_ft.models.build import build_classifier, build_model, build_net, check_input_size
from inat_ft.models.dropout import Dropout
from inat_ft.models.net import make_net
from inat_ft.models.weights import read_state
from inat_ft.settings import load_config


def model_config(**options: object) -> ModelConfig:
    return load_config(None, [(f"model.{key}", value) for key, value in options.items()]).model


def test_resnet50_has_torchvisions_stages_and_its_weights_load_there() -> None:
    net = build_net(model_config(backbone="resnet50", weights="none"), 10, 224, seed=0)
    assert net.stage_names == ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    assert net.head_name == "fc"
    resnet50(num_classes=10).load_state_dict(net.original_state_dict())


def test_the_head_is_dropout_and_linear() -> None:
    net = build_net(model_config(backbone="resnet18", weights="none", dropout=0.2), 7, 64, seed=0)
    dropout, linear = net.head
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.2
    assert isinstance(linear, nn.Linear) and (linear.in_features, linear.out_features) == (512, 7)


def test_the_seed_decides_the_head_and_leaves_the_global_state_alone() -> None:
    config = model_config(backbone="resnet18", weights="none")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = [build_net(config, 3, 64, seed).head[1].weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_32", "swin_t", "mobilenet_v3_small"])
def test_weights_that_will_be_loaded_are_not_drawn_and_the_head_is_the_same(backbone: str) -> None:
    config = ModelConfig(backbone=backbone, weights="none")
    drawn = build_net(config, 3, 64, seed=5)
    torch.use_deterministic_algorithms(True)  # new tensors are NaN, which truncated distributions would draw forever
    try:
        empty = build_net(config, 3, 64, seed=5, initialize=False)
    finally:
        torch.use_deterministic_algorithms(False)
    ours, theirs = drawn.original_state_dict(), empty.original_state_dict()
    skipped = {"resnet18": "conv1.weight", "vit_b_32": "mlp.0.weight"}.get(backbone, "-")  # normal and uniform
    assert all(theirs[name].isnan().all() for name in theirs if skipped in name)
    head = f"{drawn.head_name}.weight"
    assert torch.equal(ours[head], theirs[head])
    assert ours.keys() == theirs.keys()
    empty.load_original_state_dict(ours, "test")
    drawn.eval(), empty.eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(drawn(images), empty(images))


def test_random_buffers_that_are_not_saved_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("projection", nn.init.normal_(torch.empty(12, 6)), persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) @ self.projection

    class Random(Backbone):
        def build(self, num_classes: int, image_size: int, dropout: float) -> nn.Module:
            return nn.Sequential(Projection(), nn.ReLU(), nn.Linear(6, num_classes))

    monkeypatch.setattr("inat_ft.models.build.build_backbone", lambda config: Random())
    config = ModelConfig(backbone="resnet18", weights="none")
    drawn, empty = (build_net(config, 3, 2, seed=5, initialize=initialize) for initialize in (True, False))
    (ours,), (theirs,) = dict(drawn.named_buffers()).values(), dict(empty.named_buffers()).values()
    assert torch.equal(ours, theirs)
    assert ours.std() > 0.5


def test_an_unknown_stage_is_named_with_those_there_are() -> None:
    net = build_net(model_config(backbone="resnet18", weights="none"), 3, 64, seed=0)
    with pytest.raises(ConfigError, match="unknown stage 'layer5' for resnet18: did you mean 'layer4'") as caught:
        net.stages_from("layer5")
    assert "conv1 bn1 layer1 layer2 layer3 layer4 fc" in caught.value.hint
    assert net.stages_from("fc") == []


def test_a_classifier_that_is_not_a_chain_is_refused() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x)
            return self.a(x) + self.b(x)

    with pytest.raises(PluginError, match=r"TwoHeads does not end with a Linear layer.*but with add"):
        make_net("two", TwoHeads(), 2, 0.0)
    with pytest.raises(PluginError, match=r"does not end with a Linear layer.*but with '0'"):
        make_net("none", nn.Sequential(nn.Conv2d(3, 3, 3)), 2, 0.0)
    with pytest.raises(PluginError, match="has no layer before its last one"):
        make_net("none", nn.Sequential(nn.Linear(3, 3)), 2, 0.0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.last(self.body(x)))

    class Branches(Twice):
        def forward(self, x):
            return self.last(self.body(x)) if x.sum() > 0 else self.last(x)

    with pytest.raises(PluginError, match="uses its last layer more than once: 'last'"):
        make_net("twice", Twice(), 4, 0.0)
    with pytest.raises(PluginError, match="the forward pass of Branches cannot be traced: TraceError"):
        make_net("branches", Branches(), 4, 0.0)


def test_a_block_that_cannot_be_traced_is_one_stage() -> None:
    class Block(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    blocks = Block(nn.Linear(4, 50), nn.Linear(50, 4)), nn.Linear(4, 4)
    net = make_net("blocks", nn.Sequential(*blocks, nn.Linear(4, 2)), 2, 0.0)
    assert net.stage_names == ("0", "1")
    x = torch.rand(2, 4)
    torch.testing.assert_close(net.eval()(x), net.head(blocks[1](blocks[0](x))))


def test_the_original_architecture_gives_the_outputs_of_the_network() -> None:
    config = model_config(backbone="resnet18", weights="none", dropout=0.2)
    net = build_net(config, 5, 64, seed=1).eval()
    state, before = net.original_state_dict(), torch.get_rng_state()
    classifier = build_classifier(config, 5, 64, state)
    assert type(classifier).__name__ == "ResNet" and torch.equal(torch.get_rng_state(), before)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(classifier.eval()(x), net(x))
    del state["layer1.0.conv1.weight"]
    with pytest.raises(WeightsError, match="the weights do not fit resnet18: "):
        build_classifier(config, 5, 64, state)


def test_a_convolution_that_gives_the_logits_is_restored(monkeypatch) -> None:
    class Convolutions(Backbone):
        def build(self, num_classes, image_size, dropout):
            return nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, num_classes, 1), nn.Flatten()
            )

    monkeypatch.setattr("inat_ft.models.build.build_backbone", lambda section: Convolutions())
    config = ModelConfig(backbone="mine", weights="none")
    net = build_net(config, 4, 16, seed=1).eval()
    classifier = build_classifier(config, 4, 16, net.original_state_dict()).eval()
    assert isinstance(classifier[2], nn.Conv2d)
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(classifier(x), net(x))


def test_logits_of_several_positions_are_refused() -> None:
    positions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(14 * 14, 4))
    with pytest.raises(PluginError, match=r"positions returns \(1, 8, 4\) for one image, not one row of logits"):
        check_input_size(make_net("positions", positions, 4, 0.0), 16, 16)


def test_a_convolution_that_gives_the_logits_becomes_a_linear_layer() -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten())
    net = make_net("conv", classifier, 5, 0.0)
    net.load_original_state_dict({**classifier.state_dict(), "2.weight": classifier[2].weight.flatten(1)}, "its own")
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(net(x), classifier(x))


class Raises(Backbone):
    def build(self, num_classes, image_size, dropout):
        raise KeyError("conv9")


class NoModule(Backbone):
    def build(self, num_classes, image_size, dropout):
        return 3


class NoWeights(Backbone):
    def build(self, num_classes, image_size, dropout):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))

    def weights(self, name):
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("bad", "name", "message"),
    [
        (Raises, "mine", r"backbone Raises of .*test_net failed in build\(\): KeyError: 'conv9'"),
        (NoModule, "mine", r"must return a torch.nn.Module from build\(\), not 3"),
        (NoWeights, "mine", r"failed in weights\(\): OSError: the disk is gone"),
    ],
)
def test_a_backbone_that_breaks_the_contract_is_named(bad, name: str, message: str, monkeypatch) -> None:
    monkeypatch.setattr("inat_ft.models.build.build_backbone", lambda section: bad())
    with pytest.raises(PluginError, match=message):
        build_model(ModelConfig(backbone=name, weights="imagenet" if bad is NoWeights else "none"), 3, 0, 16)


class TestWeightsFromFiles:
    def test_a_file_from_before_batch_counters_gives_the_other_tensors(self, tmp_path) -> None:
        source = get_model("resnet18", weights=None)
        old = {name: tensor for name, tensor in source.state_dict().items() if not name.endswith("num_batches_tracked")}
        torch.save(old, tmp_path / "w.pth")
        model = build_model(model_config(backbone="resnet18", weights=str(tmp_path / "w.pth")), 4, seed=0)
        found = model.net.original_state_dict()
        assert torch.equal(found["bn1.weight"], old["bn1.weight"]) and found["bn1.num_batches_tracked"] == 0
        del old["layer1.0.conv1.weight"]
        torch.save(old, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="does not fit this network: 1 missing"):
            build_model(model_config(backbone="resnet18", weights=str(tmp_path / "w.pth")), 4, seed=0)

    def test_a_missing_file_and_unknown_weights_are_named(self, tmp_path) -> None:
        with pytest.raises(WeightsError, match="no such weights file: "):
            read_state(tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="resnet18 has no weights 'imagenet1k'") as caught:
            build_model(model_config(backbone="resnet18", weights="imagenet1k"), 4, seed=0)
        assert "IMAGENET1K_V1" in caught.value.hint
        with pytest.raises(WeightsError, match="NoModule has no weights 'imagenet'"):
            NoModule().weights("imagenet")

    def test_a_classifier_of_other_classes_gives_its_backbone(self, tmp_path) -> None:
        source = get_model("resnet18", weights=None)
        torch.save(source.state_dict(), tmp_path / "w.pth")
        model = build_model(model_config(backbone="resnet18", weights=str(tmp_path / "w.pth")), 4, seed=0)
        assert torch.equal(model.net.original_state_dict()["layer4.1.conv2.weight"], source.layer4[1].conv2.weight)
        assert model.net.original_state_dict()["fc.weight"].shape == (4, 512)

    def test_what_does_not_fit_is_named(self, tmp_path) -> None:
        torch.save(get_model("resnet34", weights=None).state_dict(), tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"does not fit this network: \d+ unexpected"):
            build_model(model_config(backbone="resnet18", weights=str(tmp_path / "w.pth")), 4, seed=0)

    def test_code_in_a_file_is_not_run(self, tmp_path) -> None:
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "exploded"), "w"))

        torch.save({"state_dict": Bomb()}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="cannot read weights"):
            read_state(tmp_path / "w.pth")
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize("content", [b"", b"nonsense"])
    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_damaged_files_are_named(self, tmp_path, content: bytes, name: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            read_state(tmp_path / name)


def test_missing_weights_without_network_say_what_to_bring_where(cli, manifest_file, monkeypatch) -> None:
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    ran = cli("train", "--split", manifest_file)
    assert ran.code == 1
    assert "resnet50-11ad3fa6.pth" in ran.err and "--weights none" in ran.err and "TORCH_HOME" in ran.err
    assert "Traceback" not in ran.err


@given(p=st.floats(0.0, 0.95), rows=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_dropout_keeps_scaled_values_and_depends_on_the_seed(p: float, rows: int, seed: int) -> None:
    layer, values = Dropout(p), torch.ones(rows, 37)
    torch.manual_seed(seed)
    dropped = layer(values)
    assert {round(value, 4) for value in dropped.flatten().tolist()} <= {0.0, round(1 / (1 - p), 4)}
    torch.manual_seed(seed)
    assert torch.equal(layer(values), dropped)
    assert torch.equal(layer.eval()(values), values)


def test_dropout_drops_the_share_of_values_independently() -> None:
    torch.manual_seed(0)
    kept = Dropout(0.3)(torch.ones(500, 400)) > 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.005)
    assert kept.float().mean(0).std().item() == pytest.approx((0.21 / 500) ** 0.5, rel=0.15)
    assert not torch.equal(kept[0], kept[1])
