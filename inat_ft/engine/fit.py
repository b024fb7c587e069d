"""The training loop. There is one, under every strategy, on every device, cached or not."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from inat_ft.data.batches import Batches
from inat_ft.engine.device import Compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.loops import Forward, OnStep, StepConfig, evaluate, train_one_epoch, update_bn
from inat_ft.engine.optimizer import LRScheduler, make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.engine.weight_averaging import WeightAverage, make_average
from inat_ft.models.net import Net
from inat_ft.records import Epoch


class Data(Protocol):
    """Where the engine gets its batches: ready for the stage that follows a frozen prefix."""

    def train(self, prefix: int, epoch: int) -> Batches:
        """Training batches of an epoch (counted from 0) whose first `prefix` stages are frozen."""

    def val(self, prefix: int, epoch: int) -> Batches:
        """Validation batches, likewise."""

    def sample_order(self, generator: torch.Generator) -> Tensor:
        """Numbers of the training images in the order of an epoch, `[M]` int64."""


@dataclass
class TrainState:
    """Where a training stands between two epochs: with the weights, all that is needed to go on from there."""

    stop: EarlyStopping
    epoch: int = 0
    """Epochs done."""
    steps: int = 0
    """Optimizer steps done."""
    optimizer: Optimizer | None = None
    history: list[Epoch] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)
    """What an average of weights must remember (averages.py)."""
    raw_weights: dict[str, Tensor] = field(default_factory=dict)
    """The weights to go on from, while the network holds averaged ones; empty while it holds these themselves."""
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """Copies of all that training may change, as after the best epoch, by name in the network's state."""
    best_logits: Tensor | None = None
    """Validation logits `[N, C]` float32 after the best epoch, on the CPU."""
    stop_reason: str = ""
    """Why training ended before the last epoch: patience, or asked; empty when it did not."""


def fit(
    net: Net,
    data: Data,
    plan: TrainingPlan,
    step_config: StepConfig,
    compute: Compute,
    seed: int,
    state: TrainState,
    on_step: OnStep = lambda done, total, loss, accuracy: None,
    on_epoch: Callable[[Epoch], bool | None] = lambda epoch: None,
    save: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    """Train until the last epoch, until patience is at its end or `on_epoch` says so, then restore the best weights.

    The best epoch is the first of those with the best monitored metric and, among these, the lowest validation loss.
    `save` is called after every epoch with all that is needed to resume. Raises InatFtError when the training loss is not
    finite.
    """
    names = plan.trainable_state_names()
    ahead = epochs(net, data, plan, step_config, compute, seed, state, on_step)
    for epoch, logits in ahead if not state.stop_reason else ():
        best = state.history[state.best_epoch - 1] if state.best_epoch else None
        state.history.append(epoch)
        if plan.starts_phase(epoch.epoch - 1):
            state.stop.reset()
        if best is None or state.stop.score(epoch) > state.stop.score(best):
            state.best, state.best_epoch, state.best_logits = copies(net, names), epoch.epoch, logits.cpu()
        if state.stop.step(epoch):
            state.stop_reason = "patience"
        if compute.process_group.broadcast(on_epoch(epoch)) and not state.stop_reason:
            state.stop_reason = "asked"
        if state.epoch == len(plan.epochs):
            state.stop_reason = ""
        save(state)
        if state.stop_reason:
            break
    restore(net, state.best)
    return state


def copies(net: Net, names: list[str]) -> dict[str, Tensor]:
    """Copies of tensors of the network's state."""
    state = net.state_dict()
    return {name: state[name].detach().clone() for name in names}


@torch.no_grad()
def restore(net: Net, weights: dict[str, Tensor]) -> None:
    """Write tensors back into the network's state, in place."""
    state = net.state_dict()
    for name, tensor in weights.items():
        state[name].copy_(tensor)


def epochs(
    net: Net,
    data: Data,
    plan: TrainingPlan,
    step_config: StepConfig,
    compute: Compute,
    seed: int,
    state: TrainState,
    on_step: OnStep = lambda done, total, loss, accuracy: None,
) -> Iterator[tuple[Epoch, Tensor]]:
    """Train in place; after each epoch yield its figures and the validation logits `[N, C]` float32 on the device.

    Leaving the loop leaves a usable network, of averaged weights where the recipe asks for them. What is random in an
    epoch hangs on seed and epoch alone, so a training that goes on from `training` does what an uninterrupted one would.
    Raises InatFtError when the loss is not finite.
    """
    config = step_config.config
    average = make_average(plan, config, state.average)

    def after(done: int, total: int, loss: float | None, accuracy: float | None) -> None:
        average.after_step()
        state.steps += 1
        on_step(done, total, loss, accuracy)

    while state.epoch < len(plan.epochs):
        started, number = time.perf_counter(), state.epoch
        restore(net, state.raw_weights)
        state.raw_weights = {}
        # averaged weights differ from those that learned before, also where they are frozen by now
        learning, prefix = plan.epochs[number], plan.frozen_prefix(number, since_start=config.average != "none")
        net.set_trainable(learning.parameters)
        if state.optimizer is None or plan.starts_phase(number):
            state.optimizer = make_optimizer(learning, config, state.optimizer)
        average.before_epoch(number)
        seed_layers(seed, number)
        forward = Forward(
            net, data.train(prefix, number), prefix, compute, compiled_tail=step_config.compiled_tail(net, prefix)
        )
        val = data.val(prefix, number)
        order = data.sample_order(epoch_generator(seed, number, "order"))
        first, last = plan.phase(number) if config.restart else (0, config.epochs)
        scheduler = LRScheduler(state.optimizer, config, number - first, last - first)
        loss, accuracy = train_one_epoch(forward, step_config, state.optimizer, order, scheduler, after)
        _take_average(net, plan, average, state, forward)
        val_loss, val_accuracy, logits = evaluate(net, val, compute, prefix)
        state.epoch += 1
        if not math.isfinite(val_loss):
            step_config.log(
                f"warning: the validation loss is {val_loss} after epoch {state.epoch}, so the network's output is not "
                "finite; try a lower learning rate: --lr"
            )
        yield (
            Epoch(
                epoch=state.epoch,
                train_loss=loss,
                train_accuracy=accuracy,
                val_loss=val_loss if math.isfinite(val_loss) else None,
                val_accuracy=val_accuracy,
                lr=scheduler.lr,
                seconds=time.perf_counter() - started,
            ),
            logits,
        )


def _take_average(net: Net, plan: TrainingPlan, average: WeightAverage, state: TrainState, forward: Forward) -> None:
    """Put averaged weights, if there are any, into the network, and remember those that training goes on from."""
    averaged = average.after_epoch(state.epoch)
    if averaged:
        state.raw_weights = copies(net, plan.trainable_state_names())
        restore(net, averaged)
        if average.refreshes_norms:
            update_bn(forward)


def epoch_generator(seed: int, epoch: int, what: str) -> torch.Generator:
    """A generator on the CPU for one purpose in one epoch."""
    return torch.Generator().manual_seed(_mix(seed, epoch, what))


def seed_layers(seed: int, epoch: int) -> None:
    """Seed what layers draw in an epoch, such as dropout."""
    torch.manual_seed(_mix(seed, epoch, "layers"))


def _mix(seed: int, epoch: int, what: str) -> int:
    """A seed of its own for each epoch and purpose."""
    digest = hashlib.sha256(f"{seed} {epoch} {what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
