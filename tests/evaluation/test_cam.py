"""Grad-CAM on any backbone: the map lies where the evidence is, and looking changes no answer."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from inat_ft_cam.cam import _cam_layer, _last_with_places, grad_cam
from PIL import Image
from torch import nn

from inat_ft.config import ModelConfig
from inat_ft.engine.device import choose_compute
from inat_ft.errors import UsageError
from inat_ft.evaluation.evaluate import evaluate_run
from inat_ft.evaluation.predict import LoadedModel
from inat_ft.models.base import Preprocess
from inat_ft.models.build import build_net
from inat_ft.models.net import make_net
from inat_ft.training import train


class Colours(nn.Module):
    """Says how red, green and blue an image is on the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(torch.relu(self.conv(images))), 1))


def test_the_map_lies_where_the_class_is(tmp_path: Path) -> None:
    net = make_net("colours", Colours(), 3, 0.0).eval()
    with torch.no_grad():
        net.head[1].weight.copy_(torch.eye(3))
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[4:8, 8:12, 0] = 255  # red at row 1, column 2 of the 8 x 8 map
    pixels[20:24, 28:32, 2] = 255  # blue at row 5, column 7
    Image.fromarray(pixels).save(tmp_path / "a.png")
    trained = LoadedModel(
        net,
        ("red", "green", "blue"),
        Preprocess(image_size=32, mean=(0, 0, 0), std=(1, 1, 1)),
        choose_compute("cpu", "fp32"),
    )
    maps = grad_cam(trained, [tmp_path / "a.png"] * 2, [0, 2])
    assert maps.shape == (2, 8, 8)
    for found, place in zip(maps, ((1, 2), (5, 7)), strict=True):
        assert found[place] == 1
        assert found.sum() == pytest.approx(1, abs=1e-3), "nothing else speaks for the class"


@pytest.mark.parametrize(
    ("backbone", "side"),
    [
        ("resnet18", 64),
        ("cnn", 32),
        ("swin_t", 64),
        ("densenet121", 64),
        ("vit_b_32", 64),
        ("timm:vit_tiny_patch16_224", 32),
    ],
)
def test_every_layout_gives_maps_and_the_same_answer(backbone: str, side: int) -> None:
    net = build_net(ModelConfig(backbone=backbone, weights="none"), 4, side, seed=0).eval()
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        plain = net(images)
    with _cam_layer(net, images) as spot, torch.no_grad():
        spot.register_forward_hook(lambda module, inputs, output: seen.append(output))
        watched = net(images)
    torch.testing.assert_close(watched, plain)  # not bit for bit: hooks keep transformers off their fused path
    assert seen[0].dim() == 4
    assert seen[0].shape[2] == seen[0].shape[3] > 1
    assert not any(module._forward_hooks for module in net.modules()), "nothing stays behind"


def test_a_map_of_one_place_is_refused() -> None:
    net = build_net(ModelConfig(backbone="alexnet", weights="none"), 4, 64, seed=0).eval()
    flat = make_net("flat", nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)), 2, 0.0).eval()
    assert _last_with_places(net, torch.randn(2, 3, 64, 64))
    with pytest.raises(UsageError, match="distinguishes positions at 2 pixels"):
        _last_with_places(flat, torch.randn(2, 3, 2, 2))


@pytest.mark.slow
def test_eval_draws_overlays(config, directories, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = train(config(optim__epochs=1), directories)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "captum.attr", None)
        with pytest.raises(UsageError, match="captum"):
            evaluate_run(run, "test", cam=True)
        assert not (run / "predictions-test.csv").exists(), "refused before it looked at the test set"
    drawn = {file.name for file in evaluate_run(run, "test", cam=True).figures}
    assert {"cam-test.png", "cam-test.svg", "cam_mistakes-test.png"} <= drawn
    plain, overlaid = (np.asarray(Image.open(run / "figures" / f"{name}-test.png")) for name in ("grid", "cam"))
    assert plain.shape[1] < overlaid.shape[1]  # each image beside its map
    assert not np.array_equal(plain, overlaid)


def test_a_network_without_places_is_refused_before_the_test_set_is_looked_at(config, directories, monkeypatch) -> None:
    _, run = train(config(optim__epochs=1), directories)
    monkeypatch.setattr("inat_ft_cam.cam._layout", lambda x, count: None)
    with pytest.raises(UsageError, match="distinguishes positions at 32 pixels"):
        evaluate_run(run, "test", cam=True)
    assert not (run / "predictions-test.csv").exists()
