import pytest
import torch
from torch import nn
from torchvision.models import get_model, resnet50

from inat_ft.config import ModelConfig
from inat_ft.errors import ConfigError, PluginError, WeightsError
from inat_ft.models import Backbone
from inat_ft.models.build import build_model, build_net
from inat_ft.models.net import make_net
from inat_ft.models.weights import read_state
from inat_ft.settings import load_config


def model_config(**options: object) -> ModelConfig:
    return load_config(None, [(f"model.{key}", value) for key, value in options.items()]).model


def test_resnet50_has_torchvisions_stages_and_its_weights_load_there(tmp_path) -> None:
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


def test_an_unknown_stage_is_named_with_those_there_are() -> None:
    net = build_net(model_config(backbone="resnet18", weights="none"), 3, 64, seed=0)
    with pytest.raises(ConfigError, match="unknown stage 'layer5' for resnet18: did you mean 'layer4'") as caught:
        net.stages_from("layer5")
    assert "conv1 bn1 layer1 layer2 layer3 layer4 fc" in caught.value.hint
    assert net.stages_from("fc") == []


def test_a_classifier_that_is_no_chain_is_refused() -> None:
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


def test_missing_weights_without_network_say_what_to_bring_where(cli, manifest_file) -> None:
    ran = cli("train", "--split", manifest_file, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    assert ran.code == 1
    assert "resnet50-11ad3fa6.pth" in ran.err and "--weights none" in ran.err and "TORCH_HOME" in ran.err
    assert "Traceback" not in ran.err
