import sys

import pytest
import torch
from inat_ft_timm.backbone import Timm
from safetensors.torch import save_file

from inat_ft.config import ModelConfig
from inat_ft.errors import ConfigError, DataError, PluginError, WeightsError
from inat_ft.models.build import build_model
from inat_ft.models.net import make_net
from inat_ft.settings import load_config

timm = pytest.importorskip("timm")


def model_config(name: str, weights: str) -> ModelConfig:
    return load_config(None, [("model.backbone", f"timm:{name}"), ("model.weights", weights)]).model


@pytest.mark.parametrize(
    "name",
    [
        *("test_byobnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet", "test_resnet"),
        *("resnetv2_18", "regnetx_002", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mobilenetv4_conv_small_035"),
    ],
)
def test_the_chain_computes_what_timm_computes(name: str) -> None:
    torch.manual_seed(0)
    classifier = timm.create_model(name, num_classes=5).eval()
    net = make_net(name, classifier, 5, 0.0).eval()
    own = {key: tensor.view_as(net.original_state_dict()[key]) for key, tensor in classifier.state_dict().items()}
    net.load_original_state_dict(own, "timm's own")
    size = 224 if "patch16" in name else 64
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(net(x), classifier(x))
    assert len(net.stages) >= 4 and set(net.original_state_dict()) == set(classifier.state_dict())


def test_weights_size_mean_and_std_are_those_that_timm_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    save_file(state, folder / "timm-vit_tiny_patch16_224.augreg_in21k_ft_in1k-model.safetensors")
    model = build_model(model_config("vit_tiny_patch16_224", "imagenet"), 3, 0)
    assert model.preprocess.image_size == 224 and model.preprocess.mean == (0.5, 0.5, 0.5)
    assert torch.equal(model.net.original_state_dict()["blocks.3.mlp.fc1.weight"], state["blocks.3.mlp.fc1.weight"])
    assert torch.equal(model.net.original_state_dict()["pos_embed"], state["pos_embed"])
    larger = build_model(model_config("vit_tiny_patch16_224", "imagenet"), 3, 0, image_size=256)
    assert larger.net.original_state_dict()["pos_embed"].shape == (1, 257, 192)


def test_missing_weights_are_named_with_where_they_belong(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def unreachable(url, to, **options):
        raise DataError(f"no way to {url}")

    monkeypatch.setattr("inat_ft_datasets.http.download", unreachable)
    with pytest.raises(
        WeightsError, match=r"timm-resnet10t.c3_in1k-model.safetensors are not in .*torch/hub"
    ) as caught:
        build_model(model_config("resnet10t", "imagenet"), 3, 0)
    assert "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors" in caught.value.hint


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match="require the package timm") as caught:
        build_model(model_config("resnet10t", "none"), 3, 0)
    assert caught.value.hint == "pip install 'inat-ft[timm]'"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("resnet10tt", ConfigError, "unknown timm classifier 'resnet10tt': did you mean 'resnet10t'"),
        ("resnet10t.nope", ConfigError, r"invalid pretrained tag \(nope\)"),
        ("levit_128", PluginError, "does not end with a Linear layer"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build_model(model_config(name, "none"), 3, 0)


def test_other_weights_are_selected_by_their_tag() -> None:
    with pytest.raises(WeightsError, match="timm:resnet10t has no weights 'imagenet21k'") as caught:
        Timm(variant="resnet10t").weights("imagenet21k")
    assert "--backbone timm:resnet10t.TAG" in caught.value.hint


def test_a_network_without_weights_of_timm_says_so() -> None:
    name = next(name for name in timm.list_models() if not (timm.get_pretrained_cfg(name).hf_hub_id or ""))
    with pytest.raises(WeightsError, match=f"timm does not provide weights for {name}"):
        Timm(variant=name).weights("imagenet")
