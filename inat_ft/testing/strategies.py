"""Checks for authors of strategies: a tiny network, synthetic images, and `check_strategy`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches, ImageInput, ResidentRows
from inat_ft.engine.device import Compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState, fit
from inat_ft.engine.loops import StepConfig
from inat_ft.engine.plan import make_plan
from inat_ft.models.net import Net, make_net
from inat_ft.strategies.base import Strategy

CLASSES = 3
SIZE = 16


def tiny_net(seed: int = 0) -> Net:
    """Return a network of four convolution stages with BatchNorm and a head for three classes, for 16 x 16 images."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = nn.Sequential()
        for name, module in (
            ("block1", block(3, 8)),
            ("block2", block(8, 8)),
            ("pool", nn.MaxPool2d(2)),
            ("block3", block(8, 16)),
            ("block4", block(16, 16)),
            ("mean", nn.AdaptiveAvgPool2d(1)),
            ("flatten", nn.Flatten()),
            ("fc", nn.Linear(16, 1000)),
        ):
            classifier.add_module(name, module)
        return make_net("tiny", classifier, CLASSES, 0.1)


def synthetic_images(number: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images uint8 `[N, 16, 16, 3]`, with one bright channel per class, and labels int64 `[N]`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % CLASSES
    images = rng.integers(0, 120, (number, SIZE, SIZE, 3), dtype=np.uint8)
    images[np.arange(number), :, :, labels] += 130
    return torch.from_numpy(images), torch.from_numpy(labels)


def write_images(folder: Path, each: int = 10, seed: int = 0) -> Path:
    """Write these images as class folders of PNG files for `inat-ft split`, and return the folder."""
    from PIL import Image

    images, labels = synthetic_images(each * CLASSES, seed)
    for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
        file = folder / f"class{label}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return folder


class SyntheticData:
    """Data for the engine: the same synthetic images for training and validation."""

    def __init__(self) -> None:
        images, labels = synthetic_images()
        prepare = ImageInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.batches = Batches(ResidentRows(images), labels, 16, prepare)

    def train(self, prefix: int, epoch: int) -> Batches:
        """Return all images."""
        return self.batches

    def val(self, prefix: int, epoch: int) -> Batches:
        """Return the same images."""
        return self.batches

    def sample_order(self, generator: torch.Generator) -> torch.Tensor:
        """Return each image once, in random order."""
        return torch.randperm(self.batches.num_images, generator=generator)


def check_strategy(strategy: Strategy, net: Callable[[], Net] = tiny_net, epochs: int = 4) -> None:
    """Check that a strategy fulfills its contract. Raises AssertionError or PluginError with the violation.

    `groups` is called twice for every epoch and must return the same groups without changing the network. After some
    epochs of training, the parameters that it returned must have changed, and all others, including BatchNorm
    statistics, must be bit-identical.
    """
    adapted = net()
    ratios = {adapted.original_name(name): 1.0 + place for place, (name, _) in enumerate(adapted.named_parameters())}
    strategy = strategy.resolve(adapted, lambda: ratios)
    adapted = strategy.adapt(adapted)
    before = copy.deepcopy(adapted.state_dict())
    first, again = make_plan(strategy, adapted, epochs), make_plan(strategy, adapted, epochs)
    for number, (one, other) in enumerate(zip(first.epochs, again.epochs, strict=True), 1):
        assert one == other, f"groups() returns different groups in two calls for epoch {number}"
    _assert_equal(adapted, before, set(before), "calling groups()")
    step_config = StepConfig(OptimConfig(epochs=epochs, lr=1e-2))
    training = TrainState(EarlyStopping(0))
    fit(SyntheticData(), first, step_config, Compute(torch.device("cpu"), "fp32", forced=True), training)
    named = set(first.trainable_state_names())
    _assert_equal(adapted, before, set(before) - named, "training")
    learned = {name for name, parameter in adapted.named_parameters() if id(parameter) in first.trainable_ids}
    stuck = [name for name in sorted(learned) if torch.equal(adapted.state_dict()[name], before[name])]
    assert not stuck or training.best_epoch < epochs, (
        f"returned by groups(), but unchanged after training: {', '.join(stuck)}"
    )
    merged = strategy.merge(adapted)
    ordinary = net().original_state_dict()
    assert set(merged.original_state_dict()) == set(ordinary), (
        "the network has different weight names after merge() than before adapt()"
    )


def _assert_equal(net: Net, before: dict[str, torch.Tensor], names: set[str], what: str) -> None:
    state = net.state_dict()
    changed = [net.original_name(name) for name in sorted(names) if not torch.equal(state[name], before[name])]
    assert not changed, f"{what} changed frozen parameters or buffers: {', '.join(changed)}"
