"""Image sizes: where they come from, which are refused, and evaluation at another one than training (FixRes)."""

import json

import numpy as np
import pytest
import torch

from inat_ft.config import ModelConfig
from inat_ft.errors import ConfigError, WeightsError
from inat_ft.evaluation.evaluate import evaluate_run
from inat_ft.evaluation.predict import InferenceConfig
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.models.build import build_model, fit_positions
from inat_ft.models.torchvision import Torchvision
from inat_ft.models.weights import read_metadata
from inat_ft.settings import load_config
from inat_ft.training import train


def model_config(backbone: str, weights: str = "none") -> ModelConfig:
    return load_config(None, [("model.backbone", backbone), ("model.weights", weights)]).model


@pytest.mark.parametrize(
    ("backbone", "weights", "size", "evaluated", "message"),
    [
        (
            "vgg11",
            "imagenet",
            30,
            None,
            "images of 30 pixels are too small for vgg11 with weights VGG11.*IMAGENET1K_V1",
        ),
        ("swin_t", "imagenet", 224, 200, "images of 200 pixels are too small for swin_t"),
        ("mobilenet_v2", "none", 32, None, None),
        (
            "squeezenet1_1",
            "none",
            16,
            None,
            "squeezenet1_1 does not support images of 16 pixels: .*Output size is too small",
        ),
        ("vit_b_32", "none", 40, None, "vit_b_32 cannot be built for images of 40 pixels: Input shape indivisible"),
        ("vit_b_32", "none", 64, 96, "vit_b_32 does not support images of 96 pixels; it was built for 64"),
        ("maxvit_t", "none", 100, None, "maxvit_t cannot be built for images of 100 pixels: .*not divisible"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(
    backbone: str, weights: str, size: int, evaluated: int | None, message: str | None, capsys
) -> None:
    config = model_config(backbone, weights)
    if message is None:
        build_model(config, 3, 0, size)
        return
    with pytest.raises(ConfigError, match=message):
        build_model(config, 3, 0, size, load=False, eval_image_size=evaluated)
    assert capsys.readouterr().err == ""


def test_inception_is_fed_as_torchvision_feeds_it() -> None:
    """torchvision's own model of pretrained weights turns ImageNet's normalisation into this one."""
    from torchvision.models import googlenet

    own = googlenet(init_weights=False, aux_logits=False, transform_input=True)
    said = Torchvision(variant="googlenet").weights("imagenet").preprocess
    pixels = torch.rand(1, 3, 8, 8)
    imagenet = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    ours = (pixels - torch.tensor(said.mean).view(3, 1, 1)) / torch.tensor(said.std).view(3, 1, 1)
    torch.testing.assert_close(ours, own._transform_input(imagenet))


def test_position_embeddings_are_resampled_and_extra_tokens_stay() -> None:
    flat = torch.full((1, 16, 8), 3.0)
    embedding = torch.cat([torch.randn(1, 2, 8), flat], 1)
    resampled = fit_positions("encoder.pos_embedding", embedding, torch.Size([1, 2 + 36, 8]))
    assert torch.equal(resampled[:, :2], embedding[:, :2])
    torch.testing.assert_close(resampled[:, 2:], torch.full((1, 36, 8), 3.0))
    assert fit_positions("fc.weight", embedding, torch.Size([1, 38, 8])) is embedding


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 8, (5).to_bytes(8, "little") + b"[1,2]", (2**40).to_bytes(8, "little")]
)
def test_weights_whose_header_is_damaged_are_refused(tmp_path, damage: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(damage)
    with pytest.raises(WeightsError, match="cannot read weights from"):
        read_metadata(tmp_path / "w.safetensors")


def test_weights_with_gaps_are_refused(tmp_path) -> None:
    state = build_model(model_config("resnet18"), 3, 0, 32).net.original_state_dict()
    state["layer1.0.conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not finite, in layer1\.0\.conv1\.weight"):
        build_model(model_config("resnet18", str(tmp_path / "w.pth")), 3, 0, 32)


@pytest.mark.slow
def test_validation_at_another_size_is_trained_cached_recorded_and_evaluated_so(
    config, directories, monkeypatch
) -> None:
    monkeypatch.setattr("inat_ft_figures.figures.draw_plots", lambda *what: [])
    settings = {"model__backbone": "resnet18", "data__eval_image_size": 48, "optim__epochs": 2}
    record, run = train(config(**settings, compute__cache="none"), directories)
    cached, _ = train(config(**settings, compute__cache="prefix"), directories)
    same_size, _ = train(config(**settings | {"data__eval_image_size": None}, compute__cache="prefix"), directories)
    losses = [[(epoch.train_loss, epoch.val_loss) for epoch in each.history] for each in (record, cached, same_size)]
    assert losses[0] == losses[1], "caches keep sizes apart"
    assert [train for train, _ in losses[0]] == [train for train, _ in losses[2]]
    assert losses[0][0][1] != losses[2][0][1]

    said = json.loads(read_metadata(run / "model.safetensors")["preprocess"])
    assert said == record.preprocess and (said["image_size"], said["eval_image_size"]) == (32, 48)
    in_training = read_predictions(run / "predictions-val.csv").probabilities
    assert evaluate_run(run, "val").evaluation.image_size == 48
    np.testing.assert_allclose(read_predictions(run / "predictions-val.csv").probabilities, in_training, atol=2e-6)
    other = evaluate_run(run, "test", InferenceConfig(image_size=64)).evaluation
    assert other.image_size == 64 and "temperature" not in other.metrics, "fitted at another size it would mislead"
    metrics = evaluate_run(run, "test").evaluation.metrics
    assert "temperature" in metrics
    text = (run / "record.json").read_text()
    (run / "record.json").write_text(text.replace('"mean": [', '"mean": [0.9, 0.9, 0.9], "was": ['))
    assert evaluate_run(run, "test").evaluation.metrics["log_loss"] == metrics["log_loss"], (
        "the model says what its input is"
    )
