"""The conformance check of an optimizer plugin."""

from __future__ import annotations

import io
from typing import Any

import torch

from inat_ft.config import OptimConfig
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import Trainable, make_plan
from inat_ft.models.net import Net
from inat_ft.optim.base import Optimizer
from inat_ft.strategies.base import Group, Strategy
from inat_ft.testing.strategies import synthetic_images, tiny_net

_LR = 1e-3
_STEPS = 3


class _TwoGroups(Strategy):
    """Train the last stages at half the learning rate of the head."""

    def groups(self, net: Net, epoch: int) -> list[Group]:
        """Return two groups with different learning rates."""
        stages = list(net.stages.values())[2:]
        return [Group(net.head.parameters()), Group([p for stage in stages for p in stage.parameters()], 0.5)]


def check_optimizer(optimizer: Optimizer) -> None:
    """Check that an optimizer plugin fulfils its contract. Raise AssertionError or PluginError if it does not.

    Checks on a small network, in float32 on the CPU: `build` keeps the parameter groups; a step uses the learning rate and
    the weight decay of each group, and skips parameters without a gradient; an optimizer that is restored from a checkpoint
    takes the same steps, bit for bit, as one that is not interrupted.
    """
    config = OptimConfig(lr=_LR, weight_decay=0.1)
    net, torch_optimizer = _start(optimizer, config)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for group in torch_optimizer.param_groups:
        assert group["lr"] == _LR, f"build() must set the learning rate {_LR}, not {group['lr']}"
        group["lr"] = 0.0
    _step(net, torch_optimizer)
    changed = [name for (name, now), then in zip(net.named_parameters(), before, strict=True) if not now.equal(then)]
    assert not changed, f"a step with a learning rate of 0 changed {', '.join(changed)}: steps must use group['lr']"
    assert all(parameter.grad is None for parameter in net.parameters()), "zero_grad(set_to_none=True) kept gradients"

    net, torch_optimizer = _start(optimizer, config)
    skipped = net.head[1].bias
    _step(net, torch_optimizer, skip=skipped)
    for (name, now), then in zip(net.named_parameters(), before, strict=True):
        moves = now.requires_grad and now is not skipped
        assert moves != now.equal(then), f"a step {'did not change' if moves else 'changed'} {name}"

    net, torch_optimizer = _start(optimizer, config)
    _step(net, torch_optimizer, scale=0.0)
    decays = {id(p): group["weight_decay"] > 0 for group in torch_optimizer.param_groups for p in group["params"]}
    for (name, now), then in zip(net.named_parameters(), before, strict=True):
        assert decays.get(id(now), False) != now.equal(then), f"weight decay of {name}: use group['weight_decay']"

    _check_resume(optimizer, config)


def _check_resume(optimizer: Optimizer, config: OptimConfig) -> None:
    """Compare an optimizer that is saved and restored between steps with one that is not."""
    whole, uninterrupted = _start(optimizer, config)
    broken, interrupted = _start(optimizer, config)
    for _ in range(_STEPS):
        _step(whole, uninterrupted)
        _step(broken, interrupted)
    file = io.BytesIO()
    torch.save(interrupted.state_dict(), file)
    file.seek(0)
    _, resumed = _start(optimizer, config, broken)
    try:
        resumed.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        raise AssertionError(
            f"the state cannot be restored: it must hold tensors and plain numbers: {error}"
        ) from error
    for _ in range(_STEPS):
        _step(whole, uninterrupted)
        _step(broken, resumed)
    different = [
        name
        for (name, one), other in zip(whole.named_parameters(), broken.parameters(), strict=True)
        if not one.equal(other)
    ]
    assert not different, f"after a resume, steps differ in {', '.join(different)}: the state is not complete"


def _start(optimizer: Optimizer, config: OptimConfig, net: Net | None = None) -> tuple[Net, torch.optim.Optimizer]:
    net = net or tiny_net()
    trainable: Trainable = make_plan(_TwoGroups(), net, 1).epochs[0]
    net.set_trainable(trainable.scales)
    return net, make_optimizer(trainable, config, plugin=optimizer)


def _step(net: Net, optimizer: torch.optim.Optimizer, skip: Any = None, scale: float = 1.0) -> None:
    """Take one step on synthetic images, without dropout. skip: parameter without a gradient; scale: of the gradients."""
    images, labels = synthetic_images()
    loss = torch.nn.functional.cross_entropy(net.eval()(images.permute(0, 3, 1, 2) / 255), labels)
    torch.autograd.backward(loss * scale)
    if skip is not None:
        skip.grad = None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
