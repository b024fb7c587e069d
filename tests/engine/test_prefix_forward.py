"""The ways to compute frozen stages give the same features within their tolerance."""

import copy
import shutil

import pytest
import torch
from torch import nn

from inat_ft.cache.frozen_prefix import PrefixCache
from inat_ft.cache.prefix_forward import Compiled, _fold, exact_prefix, folded_prefix, reduced_prefix
from inat_ft.config import ModelConfig
from inat_ft.models.build import build_net
from inat_ft.setup import TrainCallbacks, make_loaders, prepare
from inat_ft.threads import decoders
from inat_ft.training import train

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.slow
def test_compiled_stages_give_the_same_features_for_batches_of_any_size() -> None:
    net = build_net(ModelConfig(backbone="resnet18", weights="none"), 3, 64, seed=0).eval()
    images = torch.randn(13, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    logged: list[str] = []
    compiled = Compiled(folded_prefix(net, 3).build(), logged.append)
    with torch.inference_mode():
        wanted = exact_prefix(net, 3).build()(images)
        made = [compiled(part) for part in (images[:5], images[5:8], images[8:])]
        assert compiled._run is not compiled.plain
        torch.testing.assert_close(torch.cat(made), wanted, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(compiled(images), wanted, rtol=1e-3, atol=1e-4)  # a larger batch
    assert logged == []


def test_stages_that_cannot_be_compiled_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: object, example: object) -> None:
        raise RuntimeError("no such instruction")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **how: original(module, backend=fail, dynamic=False))
    logged: list[str] = []
    compiled = Compiled(nn.Conv2d(3, 4, 3), logged.append)
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(compiled(images), compiled.plain(images))
        assert torch.equal(compiled(images), compiled.plain(images))
    (line,) = logged
    assert "torch.compile failed" in line


@needs_compiler
@pytest.mark.slow
def test_the_prefix_is_compiled_for_many_images_and_recorded(
    config, directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"compute__precision": "auto", "optim__epochs": 1}
    few, _ = train(config(**settings), directories)
    assert not any("compiled" in line for line in few.compute["decisions"])
    monkeypatch.setattr("inat_ft.cache.frozen_prefix._COMPILE_FLOPS", 0.0)
    monkeypatch.setattr("inat_ft.cache.loaders._CHECKED_IMAGES", 8)
    directories = type(directories)(directories.runs, directories.cache / "fresh")
    many, _ = train(config(**settings), directories)
    assert any(
        "compiled with torch.compile, which pays off for 36 images" in line for line in many.compute["decisions"]
    )
    assert many.history[0].train_loss == pytest.approx(few.history[0].train_loss, rel=0.02)
    exact, _ = train(config(**{**settings, "compute__precision": "fp32"}), directories)
    assert not any("compiled" in line for line in exact.compute["decisions"])


@needs_compiler
def test_a_compiled_prefix_uses_smaller_batches_when_memory_runs_out(config, directories, monkeypatch) -> None:
    sizes: list[int] = []

    def scarce(self: Compiled, inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        raise MemoryError

    monkeypatch.setattr("inat_ft.cache.frozen_prefix._COMPILE_FLOPS", 0.0)
    monkeypatch.setattr("inat_ft.cache.loaders._CHECKED_IMAGES", 8)
    monkeypatch.setattr(Compiled, "forward", scarce)
    record, _ = train(config(compute__precision="auto", optim__epochs=1), directories)
    assert sizes == [32, 9], "once for the training images, once for the validation images"
    assert record.history[0].train_loss > 0


@pytest.mark.parametrize(("precision", "dtype", "error"), [("bf16", torch.bfloat16, 0.1), ("fp32", torch.float32, 0)])
def test_frozen_stages_that_are_not_cached_use_the_chosen_precision(
    config, directories, precision, dtype, error
) -> None:
    setup = prepare(config(compute__cache="none", compute__precision=precision, optim__batch_size=21))
    net = setup.plan.net.eval()
    with decoders() as pool, torch.no_grad():
        batches = make_loaders(setup, directories, TrainCallbacks(), pool).train(len(net.stages), 0)
        inputs, _ = next(iter(batches()))
        made, wanted = batches.frozen(inputs), net.forward_stages(inputs, 0, len(net.stages))
    assert made.dtype == dtype and len(made) == 21
    assert (made.float() - wanted).norm() <= (error or 1e-5) * wanted.norm()


def test_the_exact_form_gives_the_same_bits_in_every_batch() -> None:
    net = build_net(ModelConfig(backbone="efficientnet_b0", weights="none"), 3, 32, seed=0).eval()
    images = torch.randn(40, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    prefix_forward = exact_prefix(net, len(net.stages)).build()
    with torch.inference_mode():
        whole = prefix_forward(images)
        for sizes in ([1, 15, 17, 7], [16, 16, 8], [39, 1]):
            assert torch.equal(torch.cat([prefix_forward(part) for part in torch.split(images, sizes)]), whole)


def test_stages_whose_bits_depend_on_the_position_of_an_image_are_not_cached(config, directories) -> None:
    class Placed(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs * torch.arange(1.0, 1 + len(inputs))[:, None, None, None]

    setup = prepare(config())
    net, model = setup.plan.net, setup.model
    cache = PrefixCache(net, model.preprocess, setup.compute, directories.cache)
    assert cache.exact_depth(len(net.stages)) == len(net.stages)
    second = list(net.stages.values())[1]
    second.register_forward_hook(lambda module, given, made: Placed()(made))
    assert (
        PrefixCache(net, model.preprocess, setup.compute, directories.cache / "new").exact_depth(len(net.stages)) == 1
    )


def test_reduced_precision_has_no_in_place_activations_and_the_same_bits() -> None:
    net = build_net(ModelConfig(backbone="resnet18", weights="none"), 3, 64, seed=0).eval()
    stages = _fold(copy.deepcopy(nn.Sequential(*net.stages.values())).eval()).bfloat16()
    stages = stages.to(memory_format=torch.channels_last)
    assert any(getattr(module, "inplace", False) for module in stages.modules())
    replaced = reduced_prefix(net, len(net.stages), torch.bfloat16).build()
    assert not any(getattr(module, "inplace", False) for module in replaced.modules())
    images = torch.randn(4, 3, 64, 64).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(replaced(images.clone()), stages(images.clone()))
    assert any(getattr(module, "inplace", False) for stage in net.stages.values() for module in stage.modules())
