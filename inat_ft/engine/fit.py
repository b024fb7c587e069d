"""The training loop. There is one, under every strategy, on every device, cached or not."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches
from inat_ft.engine.device import Compute, threads
from inat_ft.engine.optimizer import make_optimizer, set_lr
from inat_ft.engine.plan import Plan
from inat_ft.engine.stopping import EarlyStop
from inat_ft.errors import InatFtError
from inat_ft.models.net import Net
from inat_ft.records import Epoch

OnStep = Callable[[int, int, float | None, float | None], None]
"""Called with (images done, images in all, loss, accuracy) now and then; the last two are None but now and then."""

_REPORT_EVERY = 20


class Data(Protocol):
    """Where the engine gets its batches: ready for the stage that follows a frozen prefix."""

    def train(self, prefix: int, epoch: int) -> Batches:
        """Training batches of an epoch (counted from 0) whose first `prefix` stages are frozen."""

    def val(self, prefix: int, epoch: int) -> Batches:
        """Validation batches, likewise."""

    def order(self, generator: torch.Generator) -> Tensor:
        """Numbers of the training images in the order of an epoch, `[M]` int64."""


@dataclass
class Training:
    """Where a training stands between two epochs: with the weights, all that is needed to go on from there."""

    stop: EarlyStop
    epoch: int = 0
    """Epochs done."""
    optimizer: Optimizer | None = None
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """Copies of all that training may change, as after the best epoch, by name in the network's state."""
    best_logits: Tensor | None = None
    """Validation logits `[N, C]` float32 after the best epoch, on the CPU."""
    stopped: str = ""
    """Why training ended before the last epoch: patience, or asked; empty when it did not."""


def fit(
    net: Net,
    data: Data,
    plan: Plan,
    config: OptimConfig,
    compute: Compute,
    seed: int,
    training: Training,
    class_weights: Tensor | None = None,
    on_step: OnStep = lambda done, total, loss, accuracy: None,
    on_epoch: Callable[[Epoch], bool | None] = lambda epoch: None,
    save: Callable[[Training], None] = lambda training: None,
) -> Training:
    """Train until the last epoch, until patience is at its end or `on_epoch` says so, then restore the best weights.

    The best epoch is the first of those with the highest validation accuracy. `save` is called after every epoch with
    all that is needed to go on. Raises InatFtError when the loss is not finite.
    """
    names = plan.changing_state()
    ahead = epochs(net, data, plan, config, compute, seed, training, class_weights, on_step)
    for epoch, logits in ahead if not training.stopped else ():
        best_before = max((past.val_accuracy or 0.0 for past in training.history), default=-1.0)
        training.history.append(epoch)
        if plan.changes(epoch.epoch - 1):
            training.stop.start_anew()
        accuracy = epoch.val_accuracy or 0.0
        if accuracy > best_before:
            state = net.state_dict()
            training.best = {name: state[name].detach().clone() for name in names}
            training.best_epoch, training.best_logits = epoch.epoch, logits.cpu()
        if training.stop.update(accuracy):
            training.stopped = "patience"
        if on_epoch(epoch) and not training.stopped:
            training.stopped = "asked"
        if training.epoch == len(plan.epochs):
            training.stopped = ""
        save(training)
        if training.stopped:
            break
    restore(net, training.best)
    return training


@torch.no_grad()
def restore(net: Net, weights: dict[str, Tensor]) -> None:
    """Write tensors back into the network's state, in place."""
    state = net.state_dict()
    for name, tensor in weights.items():
        state[name].copy_(tensor)


def epochs(
    net: Net,
    data: Data,
    plan: Plan,
    config: OptimConfig,
    compute: Compute,
    seed: int,
    training: Training,
    class_weights: Tensor | None = None,
    on_step: OnStep = lambda done, total, loss, accuracy: None,
) -> Iterator[tuple[Epoch, Tensor]]:
    """Train in place; after each epoch yield its figures and the validation logits `[N, C]` float32 on the device.

    Leaving the loop leaves a usable network. What is random in an epoch hangs on seed and epoch alone, so a training
    that goes on from `training` does what an uninterrupted one would. Raises InatFtError when the loss is not finite.
    """
    while training.epoch < len(plan.epochs):
        started, number = time.perf_counter(), training.epoch
        learning, prefix = plan.epochs[number], plan.frozen_prefix(number)
        net.learn(learning.parameters)
        if training.optimizer is None or plan.changes(number):
            training.optimizer = make_optimizer(learning, config, training.optimizer)
        _seed(seed, number)
        train, val = data.train(prefix, number), data.val(prefix, number)
        order = data.order(epoch_generator(seed, number, "order"))
        learn = _Pass(net, train, prefix, compute)
        loss, accuracy, lr = _train(learn, training.optimizer, order, number, config, class_weights, on_step)
        val_loss, val_accuracy, logits = evaluate(net, val, compute, prefix)
        training.epoch += 1
        yield (
            Epoch(
                epoch=training.epoch,
                train_loss=loss,
                train_accuracy=accuracy,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                lr=lr,
                seconds=time.perf_counter() - started,
            ),
            logits,
        )


@dataclass(frozen=True)
class _Pass:
    """One pass over some images: what the frozen prefix makes of them, then what learns."""

    net: Net
    batches: Batches
    prefix: int
    compute: Compute
    cores: int = field(default_factory=torch.get_num_threads)

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` float32. The head always computes in float32: it costs nothing and decides the answer."""
        with self.compute.autocast():
            if self.batches.start < self.prefix:
                with torch.no_grad(), threads(self.cores):
                    inputs = self.net.run(inputs, self.batches.start, self.prefix)
            features = self.net.run(inputs, self.prefix, len(self.net.stages))
        return self.net.head(features.float())  # type: ignore[no-any-return]

    def alone(self) -> AbstractContextManager[None]:
        """One thread when only the head learns on a CPU: more gain little, and lose much on a busy machine."""
        only_head = self.prefix == len(self.net.stages) and self.compute.device.type == "cpu"
        return threads(1) if only_head else nullcontext()


def _train(
    on: _Pass,
    optimizer: Optimizer,
    order: Tensor,
    number: int,
    config: OptimConfig,
    weights: Tensor | None,
    step: OnStep,
) -> tuple[float, float, float]:
    """One pass of learning. Returns the mean loss in nats per image, the share that was right, the last learning rate.

    Loss and accuracy are summed on the device. A GPU is waited for once, at the end.
    """
    on.net.train()
    total = torch.zeros(2, device=on.compute.device)
    done, lr = 0, config.lr
    steps = len(on.batches.numbers(order))
    with on.alone():
        for index, (inputs, labels) in enumerate(on.batches(order)):
            lr = set_lr(optimizer, config, number + (index + 1) / steps)
            total += _step(on, optimizer, inputs, labels, config, weights)
            done += len(labels)
            shown = index % _REPORT_EVERY == 0 and on.compute.device.type == "cpu"
            loss, accuracy = (total / done).tolist() if shown else (None, None)
            step(done, len(order), loss, accuracy)
    loss, accuracy = (total / done).tolist()
    if not math.isfinite(loss):
        raise InatFtError(
            f"the loss is {loss} in epoch {number + 1}: training has diverged", "try a lower learning rate: --lr"
        )
    return loss, accuracy, lr


def _step(
    on: _Pass, optimizer: Optimizer, inputs: Tensor, labels: Tensor, config: OptimConfig, weights: Tensor | None
) -> Tensor:
    """One step, in `accumulate` parts. Returns the summed loss and the number of right answers, `[2]` on the device."""
    sums = torch.zeros(2, device=labels.device)
    parts = max(1, min(config.accumulate, len(labels) // 2))
    for x, y in zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True):
        logits = on.logits(x)
        loss = F.cross_entropy(logits, y, weights, label_smoothing=config.label_smoothing, reduction="sum")
        (loss / len(labels)).backward()  # type: ignore[no-untyped-call]
        sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == y).sum()])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums


@torch.no_grad()
def evaluate(net: Net, batches: Batches, compute: Compute, prefix: int = 0) -> tuple[float, float, Tensor]:
    """Mean loss in nats, share that is right, and the logits `[N, C]` float32 on the device, in the rows' order."""
    net.eval()
    on = _Pass(net, batches, max(prefix, batches.start), compute)
    with on.alone():
        logits = torch.cat([on.logits(inputs) for inputs, _ in batches()])
        loss = F.cross_entropy(logits, batches.labels)
        right = (logits.argmax(1) == batches.labels).float().mean()
    value, accuracy = torch.stack([loss, right]).tolist()
    return value, accuracy, logits


def epoch_generator(seed: int, epoch: int, what: str) -> torch.Generator:
    """A generator on the CPU for one purpose in one epoch."""
    return torch.Generator().manual_seed(_mix(seed, epoch, what))


def _seed(seed: int, epoch: int) -> None:
    torch.manual_seed(_mix(seed, epoch, "layers"))


def _mix(seed: int, epoch: int, what: str) -> int:
    """A seed of its own for each epoch and purpose."""
    digest = hashlib.sha256(f"{seed} {epoch} {what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
