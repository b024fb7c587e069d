"""A small network and images to test with, and the conformance checks of plugins that act on networks."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches, ImageInput, ResidentRows
from inat_ft.engine.device import Compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState, fit, run_tasks
from inat_ft.engine.forward import StepConfig
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import make_plan
from inat_ft.evaluation.predict import LoadedModel
from inat_ft.exporters import Exporter, export_model
from inat_ft.models.base import Backbone, Preprocess
from inat_ft.models.net import Net, make_net
from inat_ft.optim import Optimizer
from inat_ft.strategies.base import Group, Strategy

_CLASSES, _SIZE = 3, 16
_CPU = Compute(torch.device("cpu"), "fp32", forced=True)
_OPTIM = OptimConfig(lr=1e-3, weight_decay=0.1)


def tiny_net(seed: int = 0) -> Net:
    """Return a network of four convolution stages with BatchNorm and a head for three classes, for 16 x 16 images."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = OrderedDict(
            block1=block(3, 8),
            block2=block(8, 8),
            pool=nn.MaxPool2d(2),
            block3=block(8, 16),
            block4=block(16, 16),
            mean=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(16, 1000),
        )
        return make_net("tiny", nn.Sequential(layers), _CLASSES, 0.1)


def synthetic_images(number: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images uint8 `[N, 16, 16, 3]`, with one bright channel per class, and labels int64 `[N]`."""
    labels = np.arange(number) % _CLASSES
    images = np.random.default_rng(seed).integers(0, 120, (number, _SIZE, _SIZE, 3), dtype=np.uint8)
    images[np.arange(number), :, :, labels] += 130
    return torch.from_numpy(images), torch.from_numpy(labels)


class SyntheticData:
    """Data for the engine: the same synthetic images for training and validation."""

    def __init__(self) -> None:
        images, labels = synthetic_images()
        self.batches = Batches(ResidentRows(images), labels, 16, ImageInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))

    def train(self, prefix: int, epoch: int) -> Batches:
        """Return all images."""
        return self.batches

    val = train

    def sample_order(self, generator: torch.Generator) -> Tensor:
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
    plan, again = make_plan(strategy, adapted, epochs), make_plan(strategy, adapted, epochs)
    for number, (one, other) in enumerate(zip(plan.epochs, again.epochs, strict=True), 1):
        assert one == other, f"groups() returns different groups in two calls for epoch {number}"
    message = "changed frozen parameters or buffers"
    assert not (changed := _changed(adapted, before)), f"calling groups() {message}: {_listed(adapted, changed)}"
    training = TrainState(EarlyStopping(0))
    run_tasks(fit(SyntheticData(), plan, StepConfig(OptimConfig(epochs=epochs, lr=1e-2)), _CPU, training))
    changed = _changed(adapted, before)
    wrong = changed - set(plan.trainable_state_names())
    assert not wrong, f"training {message}: {_listed(adapted, wrong)}"
    stuck = {name for name, weight in adapted.named_parameters() if id(weight) in plan.trainable_ids} - changed
    assert not stuck or training.best_epoch < epochs, (
        f"returned by groups(), but unchanged after training: {_listed(adapted, stuck)}"
    )
    assert set(strategy.merge(adapted).original_state_dict()) == set(net().original_state_dict()), (
        "the network has different weight names after merge() than before adapt()"
    )


def _changed(net: Net, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not value.equal(before[name])}


def _listed(net: Net, names: set[str]) -> str:
    return ", ".join(net.original_name(name) for name in net.state_dict() if name in names)


class _TwoGroups(Strategy):
    """Train the last stages at half the learning rate of the head."""

    def groups(self, net: Net, epoch: int) -> list[Group]:
        stages = list(net.stages.values())[2:]
        return [Group(net.head.parameters()), Group([p for stage in stages for p in stage.parameters()], 0.5)]


def check_optimizer(optimizer: Optimizer) -> None:
    """Check that an optimizer plugin fulfils its contract. Raise AssertionError or PluginError if it does not.

    Checks on a small network, in float32 on the CPU: `build` keeps the parameter groups; a step uses the learning rate and
    the weight decay of each group, and skips parameters without a gradient; an optimizer that is restored from a checkpoint
    takes the same steps, bit for bit, as one that is not interrupted.
    """
    net, stepper = _start(optimizer)
    before = copy.deepcopy(net.state_dict())
    for group in stepper.param_groups:
        assert group["lr"] == _OPTIM.lr, f"build() must set the learning rate {_OPTIM.lr}, not {group['lr']}"
        group["lr"] = 0.0
    _step(net, stepper)
    changed = _listed(net, _changed(net, before))
    assert not changed, f"a step with a learning rate of 0 changed {changed}: steps must use group['lr']"
    assert all(weight.grad is None for weight in net.parameters()), "zero_grad(set_to_none=True) kept gradients"

    net, stepper = _start(optimizer)
    skipped = list(net.head.parameters())[-1]
    _step(net, stepper, skip=skipped)
    expected = {name for name, weight in net.named_parameters() if weight.requires_grad and weight is not skipped}
    wrong = _listed(net, _changed(net, before) ^ expected)
    assert not wrong, (
        f"a step changed parameters that are frozen or have no gradient, or did not change others: {wrong}"
    )

    net, stepper = _start(optimizer)
    _step(net, stepper, scale=0.0)
    decaying = {id(weight) for group in stepper.param_groups if group["weight_decay"] > 0 for weight in group["params"]}
    expected = {name for name, weight in net.named_parameters() if id(weight) in decaying}
    wrong = _listed(net, _changed(net, before) ^ expected)
    assert not wrong, f"weight decay of {wrong}: use group['weight_decay']"
    _check_resume(optimizer)


def _check_resume(optimizer: Optimizer) -> None:
    whole, uninterrupted = _start(optimizer)
    broken, interrupted = _start(optimizer)
    _step(whole, uninterrupted, times=6)
    _step(broken, interrupted, times=3)
    file = io.BytesIO()
    torch.save(interrupted.state_dict(), file)
    file.seek(0)
    _, resumed = _start(optimizer, broken)
    try:
        resumed.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        message = f"the state cannot be restored: it must hold tensors and plain numbers: {error}"
        raise AssertionError(message) from error
    _step(broken, resumed, times=3)
    different = _listed(whole, _changed(whole, broken.state_dict()))
    assert not different, f"after a resume, steps differ in {different}: the state is not complete"


def _start(optimizer: Optimizer, net: Net | None = None) -> tuple[Net, torch.optim.Optimizer]:
    net = net or tiny_net()
    trainable = make_plan(_TwoGroups(), net, 1).epochs[0]
    net.set_trainable(trainable.scales)
    return net, make_optimizer(trainable, _OPTIM, plugin=optimizer)


def _step(
    net: Net, optimizer: torch.optim.Optimizer, skip: Tensor | None = None, scale: float = 1.0, times: int = 1
) -> None:
    """Take steps on synthetic images, without dropout. skip: parameter without a gradient; scale: of the gradients."""
    images, labels = synthetic_images()
    for _ in range(times):
        loss = nn.functional.cross_entropy(net.eval()(images.permute(0, 3, 1, 2) / 255), labels)
        torch.autograd.backward(loss * scale)
        if skip is not None:
            skip.grad = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def check_backbone(backbone: Backbone, image_size: int = 64) -> None:
    """Check that a backbone builds a network that can be split into stages, fine-tuned and given its weights.

    image_size: height and width, in pixels, of images that the network accepts. Raises AssertionError, or PluginError when
    the network cannot be split into stages. Pretrained weights, if there are any, are loaded.
    """
    classifier = backbone.build(_CLASSES, image_size, dropout=0.1)
    assert isinstance(classifier, nn.Module), f"build() returned {classifier!r}, not a torch.nn.Module"
    names = set(classifier.state_dict())
    torch.manual_seed(0)
    net = make_net("backbone", classifier, _CLASSES, 0.1)
    assert len(net.stages) > 1, "the network has a single stage, so that a strategy cannot freeze a part of it"
    images = torch.randn(2, 3, image_size, image_size)
    with torch.inference_mode():
        logits = net.eval()(images)
        assert logits.shape == (2, _CLASSES), f"the logits have the shape {tuple(logits.shape)}, not (2, {_CLASSES})"
        assert torch.allclose(net(images[:1]), logits[:1], atol=1e-4), "the logits of an image depend on the others"
    net.train()(images).sum().backward()
    missing = {name for name, weight in net.named_parameters() if weight.grad is None}
    assert not missing, f"no gradient for {_listed(net, missing)}"
    unknown = set(backbone.weights("imagenet").load()) - names if backbone.pretrained else set()
    assert not unknown, f"the pretrained weights have keys that the network lacks: {', '.join(sorted(unknown)[:5])}"


def check_exporter(exporter: Exporter, directory: Path) -> None:
    """Check that an exporter writes a small network that it reads back with the same probabilities.

    directory: where to write the file. Raises what the exporter raises, InatFtError when the probabilities differ, and
    AssertionError when the suffix is not one.
    """
    suffix = exporter.suffix
    assert suffix.startswith(".") and len(suffix) > 1, f"the suffix must be such as '.onnx', not {suffix!r}"
    classes = tuple(f"class{label}" for label in range(_CLASSES))
    file = directory / f"model{suffix}"
    export_model(exporter, LoadedModel(tiny_net().eval(), classes, Preprocess(image_size=_SIZE), _CPU), file)
    assert file.stat().st_size > 0, f"export() wrote nothing to {file.name}"
