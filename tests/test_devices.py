"""Training, evaluation and prediction on simulated GPUs: one device in each operation, few waits, few kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from inat_ft_averaging.averages import make_average
from inat_ft_soup.soup import make_soup
from torchvision.models import resnet18

import inat_ft
from inat_ft.config import ModelConfig, OptimConfig
from inat_ft.engine import loops
from inat_ft.engine.checkpoint import CheckpointWriter
from inat_ft.engine.plan import make_plan
from inat_ft.errors import InatFtError
from inat_ft.evaluation.evaluate import evaluate_run
from inat_ft.evaluation.predict import InferenceConfig, predict_images
from inat_ft.models.build import build_net
from inat_ft.strategies.stages import Full
from inat_ft.training import TrainCallbacks, train
from tests.fake_device import Counts, DeviceRuleError, FakeDevice, fake_device
from tests.sweeps.test_soup import trained

DEVICES = {"cuda": "cuda:0", "mps": "mps"}
FULL = {"strategy__name": "full"}
RESNET = {"model__backbone": "resnet18"}
PARTIAL = RESNET | {"strategy__name": "partial", "strategy__unfreeze_from": "layer4"}
AUGMENT = {
    "flip": {"data__augment": "flip"},
    "views": {"data__augment": "standard", "data__views": 2},
    "random": {"data__augment": "standard"},
}
FAST = {
    "head": {},
    "head-flip": AUGMENT["flip"],
    "partial-views": PARTIAL | AUGMENT["views"] | {"compute__cache": "prefix"},
    "full-random-ema": FULL | AUGMENT["random"] | {"optim__average": "ema"},
    "lora": {"strategy__name": "lora"},
}
SLOW = {
    "head-bf16": {"compute__precision": "bf16"},
    "head-views": AUGMENT["views"],
    "head-random": AUGMENT["random"],
    "head-uncached": {"compute__cache": "none"},
    "head-packed-flip": AUGMENT["flip"] | {"compute__cache": "packed"},
    "head-uncached-views": AUGMENT["views"] | {"compute__cache": "none"},
    "head-ema": {"optim__average": "ema"},
    "head-swa": {"optim__average": "swa", "optim__epochs": 3},
    "head-weights": {"data__balance": "weights"},
    "head-sampler": {"data__balance": "sampler"},
    "partial": PARTIAL,
    "partial-cached": PARTIAL | {"compute__cache": "prefix"},
    "partial-cached-flip": PARTIAL | AUGMENT["flip"] | {"compute__cache": "prefix"},
    "partial-random": PARTIAL | AUGMENT["random"],
    "full": RESNET | FULL,
    "full-flip": FULL | AUGMENT["flip"],
    "full-uncached": FULL | {"compute__cache": "none"},
    "full-views-swa": FULL | AUGMENT["views"] | {"optim__average": "swa", "optim__epochs": 3},
    "full-sgd-clip": FULL | {"optim__optimizer": "sgd", "optim__clip_norm": 1.0, "optim__label_smoothing": 0.1},
    "full-mixup": FULL | {"optim__mixup": 0.2, "optim__cutmix": 1.0},
    "full-accumulate": FULL | {"optim__accumulate": 4},
    "full-l2-sp": RESNET | FULL | {"optim__regularize": "l2-sp", "model__weights": "start.pt"},
    "lora-flip-ema": {"strategy__name": "lora", "optim__average": "ema"} | AUGMENT["flip"],
    "lp-ft": {"strategy__name": "lp-ft", "optim__epochs": 4},
    "full-wise-ft": RESNET | FULL | {"optim__average": "wise-ft", "model__weights": "start.pt"},
    "gradual": {"strategy__name": "gradual", "optim__epochs": 3},
    "discriminative": {"strategy__name": "discriminative"},
    "surgical": RESNET | {"strategy__name": "surgical", "strategy__block": "layer1"},
    "auto-rgn": {"strategy__name": "auto-rgn"},
    "bn-only": {"strategy__name": "bn-only"},
    "bias-only": {"strategy__name": "bias-only"},
}
BOTH = ["cuda", pytest.param("mps", marks=pytest.mark.slow)]
MAX_WAITS = 3
"""For the training loss, the validation, and the best logits of an epoch."""
MAX_HEAD_KERNELS = 25


@dataclass
class Trained:
    directory: Path
    decisions: list[str]
    steps: list[Counts] = field(default_factory=list)
    waits: list[list[str]] = field(default_factory=list)
    """Host synchronizations of each epoch, without those of the checkpoint."""


@pytest.fixture
def run(config, directories, monkeypatch: pytest.MonkeyPatch):
    """Train on a simulated device and count what each step and each epoch does."""

    def go(gpu: FakeDevice, **settings: object) -> Trained:
        steps, waits, start = [], [], 0
        step, save = loops.step, CheckpointWriter.save

        def counted_step(*given):
            with gpu.counting() as inside:
                sums = step(*given)
            steps.append(inside)
            return sums

        def uncounted_save(*given):
            nonlocal start
            save(*given)
            start = len(gpu.waits)

        def on_epoch(epoch) -> None:
            preparing = ("cache/", "models/weights.py")  # the outputs of newly frozen layers
            waits.append([wait for wait in gpu.waits[start:] if not any(part in wait for part in preparing)])

        with monkeypatch.context() as patch:
            patch.setattr(loops, "step", counted_step)
            patch.setattr(CheckpointWriter, "save", uncounted_save)
            defaults = {"compute__device": DEVICES[gpu.kind], "compute__precision": "auto", "stop__patience": 0}
            record, directory = train(config(**(defaults | settings)), directories, TrainCallbacks(on_epoch=on_epoch))
        assert record.compute["device"] == gpu.kind
        return Trained(directory, record.compute["decisions"], steps, waits)

    return go


def check(kind: str, settings: dict[str, object], run) -> None:
    with fake_device(kind) as gpu:
        trained = run(gpu, **settings)
    assert trained.steps and not any(step.waits or step.copies for step in trained.steps)
    assert len(trained.waits[-1]) <= MAX_WAITS, trained.waits[-1]
    if kind == "cuda" and settings in ({}, AUGMENT["flip"], AUGMENT["views"]):  # a head on cached features
        assert len(trained.steps[-1].kernels) <= MAX_HEAD_KERNELS, trained.steps[-1].kernels


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", FAST)
def test_strategies(kind: str, name: str, run) -> None:
    check(kind, FAST[name], run)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("name", SLOW)
def test_all_strategies_augmentations_averages_and_caches(kind: str, name: str, run) -> None:
    torch.save(resnet18().state_dict(), "start.pt")
    check(kind, SLOW[name], run)


TINY = {"model__backbone": "cnn", "model__filters": 16, "model__organisation": "same"}


@pytest.mark.parametrize("kind", BOTH)
def test_a_run_is_resumed_evaluated_exported_and_used(kind: str, config, directories, images: Path) -> None:
    def stop(epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    settings = (
        FULL | TINY | {"optim__average": "ema", "optim__epochs": 3, "compute__precision": "auto", "name": "broken"}
    )
    given = config(compute__device=DEVICES[kind], **settings)
    with fake_device(kind):
        with pytest.raises(KeyboardInterrupt):
            train(given, directories, TrainCallbacks(on_epoch=stop))
        record, directory = train(given, directories, resume=directories.runs / "broken")
        assert len(record.history) == 3
        inference = InferenceConfig(device=DEVICES[kind], tta="flip")
        evaluated = evaluate_run(directory, "val", inference, cam=True)
        assert evaluated.figures
        answers, problems = predict_images([directory], [images], inference)
        assert len(answers) == 60 and not problems
        model, _ = inat_ft.load(directory, DEVICES[kind])
        assert next(model.parameters()).device.type == kind
    assert inat_ft.export(directory, directory / "model.pt2").largest_difference < 1e-3
    expected, _ = predict_images([directory], [images], InferenceConfig(device="cpu", tta="flip"))
    for one, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEVICES)
def test_a_soup_is_made(kind: str, manifest_file: Path, tmp_path: Path) -> None:
    sweep = trained(manifest_file, tmp_path, lr=[1e-5, 1.02e-5])
    with fake_device(kind) as gpu:
        soup = make_soup(sweep, tmp_path / "runs", tmp_path / "cache")
    assert soup.num_candidates == 2 and gpu.kernels


def test_results_are_those_of_the_cpu(config, directories) -> None:
    settings = TINY | AUGMENT["views"] | {"compute__precision": "fp32", "stop__patience": 0}
    with fake_device("cuda"):
        simulated, _ = train(config(compute__device="cuda:0", **settings), directories)
    real, _ = train(config(**settings), directories)
    for one, other in zip(simulated.history, real.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)


@pytest.mark.parametrize("settings", [{"free_bytes": 100_000}, {"largest_allocation": 200_000}], ids=["full", "filled"])
def test_rows_that_do_not_fit_on_the_device_are_read_from_the_disk(settings, config, directories) -> None:
    """36 and 9 rows of 16 KiB, of which 40 % of the free memory may be used; or allocating them fails."""
    common = {**PARTIAL, **TINY, **AUGMENT["flip"], "strategy__unfreeze_from": "block3", "compute__cache": "prefix"}
    common |= {"compute__precision": "fp32", "stop__patience": 0, "optim__batch_size": 4}
    with fake_device("cuda"):
        kept, _ = train(config(compute__device="cuda:0", **common), directories)
    with fake_device("cuda", **settings) as gpu:
        read, _ = train(config(compute__device="cuda:0", **common), directories)
        assert gpu.kernels
    decision = "prefix cache: read from the disk"
    assert any(decision in line for line in read.compute["decisions"])
    assert not any(decision in line for line in kept.compute["decisions"])
    assert [epoch.train_loss for epoch in read.history] == [epoch.train_loss for epoch in kept.history]


@pytest.mark.parametrize("kind", BOTH)
def test_smaller_batches_are_used_when_memory_runs_out(kind: str, config, directories, images: Path) -> None:
    """The first layer gives 64 KiB an image, so that 36 images at once do not fit in an allocation."""
    given = config(compute__device=DEVICES[kind], compute__precision="auto", **TINY)
    with fake_device(kind, largest_allocation=20 * 2**16):
        record, directory = train(given, directories)
        answers, _ = predict_images([directory], [images], InferenceConfig(device=DEVICES[kind]))
    assert len(record.history) == 2 and len(answers) == 60
    with fake_device(kind, largest_allocation=10_000), pytest.raises(InatFtError, match="out of memory with one image"):
        predict_images([directory], [images], InferenceConfig(device=DEVICES[kind]))


class TestFakeDevice:
    """The rules of the simulated devices."""

    @pytest.mark.parametrize("kind", DEVICES)
    def test_operands_on_two_devices_are_an_error(self, kind: str) -> None:
        with fake_device(kind) as gpu:
            there = torch.ones(3).to(gpu.device)
            assert there.device == gpu.device
            assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
            with pytest.raises(RuntimeError, match="two devices"):
                there + torch.ones(3)

    def test_device_tensors_are_not_pinned_and_pageable_ones_are_not_copied_without_waiting(self) -> None:
        with fake_device("cuda") as gpu:
            with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
                torch.ones(3).to(gpu.device).pin_memory()
            with pytest.raises(DeviceRuleError, match="pageable"):
                torch.ones(3).to(gpu.device, non_blocking=True)
            with gpu.counting() as counted:
                torch.ones(3).pin_memory().to(gpu.device, non_blocking=True)
            assert not counted.copies
        with fake_device("mps") as gpu, pytest.raises(DeviceRuleError, match="pinned"):
            torch.ones(3).pin_memory().to(gpu.device, non_blocking=True)

    def test_mps_has_no_float64(self) -> None:
        with fake_device("mps") as gpu:
            for make in (lambda: torch.ones(3).double().to(gpu.device), lambda: torch.ones(3).to(gpu.device).double()):
                with pytest.raises(TypeError, match="float64"):
                    make()

    def test_waits_and_kernels_are_counted(self) -> None:
        with fake_device("cuda") as gpu:
            there = torch.ones(3, device=gpu.device)
            with gpu.counting() as counted:
                (there * 2 + 1).view(3, 1)
            assert counted.kernels == ["mul", "add"] and not counted.waits
            with gpu.counting() as counted:
                float(there.sum()), there.cpu(), there[there > 0], there.tolist()
            assert len(counted.waits) == 4


def test_an_average_of_weights_costs_few_kernels_per_step() -> None:
    with fake_device("cuda") as gpu:
        net = build_net(ModelConfig(backbone="resnet18", weights="none"), 3, 32, 0).to(gpu.device)
        plan = make_plan(Full(), net, 2)
        for kind in ("ema", "swa"):
            average = make_average(plan, OptimConfig(average=kind, epochs=2), {})
            average.before_epoch(1)
            average.after_step()
            with gpu.counting() as counted:
                average.after_step()
            assert len(counted.kernels) <= 10 and not counted.waits, (kind, counted.kernels)
