"""Frozen layers in another implementation are used where it agrees with torch and is faster, and only there."""

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inat_ft_runtimes import frozen
from inat_ft_runtimes.trial import Trial
from torch import Tensor, nn

from inat_ft.cache.prefix_forward import folded_prefix, reduced_prefix
from inat_ft.config import ModelConfig
from inat_ft.models.build import build_net
from inat_ft.training import train

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Slow(nn.Module):
    def __init__(self, layer: nn.Module, seconds: float = 0.02) -> None:
        super().__init__()
        self.layer, self.seconds = layer, seconds

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.layer(images)


def run(stages: nn.Module, **others: Callable[[Tensor], Tensor]) -> tuple[Trial, list[str]]:
    logged: list[str] = []
    trial = Trial(stages, {name: lambda images, other=other: other for name, other in others.items()}, logged.append)
    with torch.inference_mode():
        for _ in range(8):
            torch.testing.assert_close(trial(IMAGES), stages(IMAGES), rtol=0.05, atol=0.05)
    return trial, logged


def test_the_fastest_implementation_is_used() -> None:
    layer = nn.Conv2d(3, 4, 3)
    trial, logged = run(Slow(layer, 0.06), slow=Slow(layer), fast=layer, wrong=lambda images: 2 * layer(images))
    assert trial._chosen is layer
    assert len(logged) == 1 and "computed by fast, " in logged[0]
    trial, logged = run(layer, slow=Slow(layer), wrong=lambda images: 2 * layer(images))
    assert trial._chosen is None
    assert "computed by torch, because wrong differs from torch by 100.00% and slow is 0." in logged[0]


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.1))
def test_an_implementation_whose_features_differ_by_more_than_2_percent_is_not_used(error: float) -> None:
    layer = nn.Conv2d(3, 4, 3, bias=False)
    trial = Trial(layer, {"other": lambda images: lambda inputs: layer(inputs) * (1 + error)}, lambda line: None)
    with torch.inference_mode():
        assert torch.equal(trial(IMAGES), layer(IMAGES))
    if abs(error - 0.02) > 1e-4:
        assert (not trial._tried) == (error > 0.02)


def test_layers_that_cannot_be_converted_stay_in_torch() -> None:
    def fail(images: Tensor) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError("no such operator")

    logged: list[str] = []
    layer = nn.Conv2d(3, 4, 3)
    trial = Trial(layer, {"OpenVINO": fail}, logged.append)
    with torch.inference_mode():
        assert all(torch.equal(trial(IMAGES), layer(IMAGES)) for _ in range(3))
    assert logged == ["prefix: computed by torch, because OpenVINO cannot compute these layers: NotImplementedError"]


def test_few_images_and_float16_are_computed_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "find_spec", lambda name: object())
    net = build_net(ModelConfig(backbone="resnet18", weights="none"), 3, 64, seed=0)
    prefix, stages = folded_prefix(net, 1), nn.Identity()
    assert frozen.faster_stages(net, prefix, stages, 1e9, print) is stages
    assert isinstance(frozen.faster_stages(net, prefix, stages, 1e18, print), Trial)
    assert isinstance(frozen.faster_stages(net, reduced_prefix(net, 1, torch.bfloat16), stages, 1e18, print), Trial)
    half = reduced_prefix(net, 1, torch.float16)
    assert frozen.faster_stages(net, half, stages, 1e18, print) is stages
    monkeypatch.setattr(frozen, "find_spec", lambda name: None)
    assert frozen.faster_stages(net, prefix, stages, 1e18, print) is stages


def test_the_frozen_layers_of_a_run_are_tried_in_all_runtimes_but_not_in_exact_float32(
    config, directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError

    monkeypatch.setattr(frozen, "find_spec", lambda name: object())
    monkeypatch.setattr(frozen, "_MIN_FLOPS", 0.0)
    runtimes = {name: (packages, fail, dtypes) for name, (packages, _, dtypes) in frozen.RUNTIMES.items()}
    monkeypatch.setattr(frozen, "RUNTIMES", runtimes)
    tried, _ = train(config(compute__precision="auto", optim__epochs=1), directories)
    assert any("because OpenVINO cannot compute" in line for line in tried.compute["decisions"])
    assert tried.compute["precision"] == "bf16" or any(
        "ONNX Runtime cannot" in each for each in tried.compute["decisions"]
    )
    exact, _ = train(config(compute__precision="fp32", optim__epochs=1), directories)
    assert not any("OpenVINO" in line for line in exact.compute["decisions"])


@pytest.mark.parametrize(
    ("runtime", "dtype"),
    [(name, dtype) for name, (_, _, dtypes) in frozen.RUNTIMES.items() for dtype in dtypes],
    ids=str,
)
def test_a_runtime_gives_the_features_of_torch_for_batches_of_any_size(runtime: str, dtype: torch.dtype) -> None:
    if runtime == "OpenVINO":
        pytest.importorskip("openvino")
    _, convert, _ = frozen.RUNTIMES[runtime]
    net = build_net(ModelConfig(backbone="resnet18", weights="none"), 3, 64, seed=0).eval()
    images = torch.randn(5, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = folded_prefix(net, 3).build()(images)
        computed = convert(net, 3, dtype, images.to(dtype))
        for size in (5, 2, 1):
            made = computed(images[:size].to(dtype))
            assert made.dtype is dtype
            error = torch.linalg.vector_norm(made.float() - wanted[:size]) / torch.linalg.vector_norm(wanted[:size])
            assert error < (1e-4 if dtype is torch.float32 else 0.02)
