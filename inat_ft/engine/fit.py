"""The training loop of all strategies."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches
from inat_ft.engine.device import Compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.loops import Forward, OnStep, StepConfig, evaluate, ignore_step, train_one_epoch, update_bn
from inat_ft.engine.optimizer import LRScheduler, make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.engine.weight_averaging import WeightAverage, make_average
from inat_ft.models.net import Net
from inat_ft.progress import Log
from inat_ft.records import Epoch


class Data(Protocol):
    """The data loaders of a training: batches for the stage after a frozen prefix."""

    def train(self, prefix: int, epoch: int) -> Batches:
        """Return the training batches of an epoch, counted from 0, in which the first `prefix` stages are frozen."""

    def val(self, prefix: int, epoch: int) -> Batches:
        """Return the validation batches of such an epoch."""

    def sample_order(self, generator: torch.Generator) -> Tensor:
        """Return the numbers of the training images in the order of an epoch, `[M]` int64."""


@dataclass
class TrainState:
    """The state between two epochs. Together with the weights, it is all that a resumed training needs."""

    early_stopping: EarlyStopping
    epoch: int = 0
    """Number of finished epochs."""
    steps: int = 0
    """Number of optimizer steps."""
    optimizer: Optimizer | None = None
    history: list[Epoch] = field(default_factory=list)
    average_state: dict[str, Tensor] = field(default_factory=dict)
    """State of the average of weights."""
    raw_weights: dict[str, Tensor] = field(default_factory=dict)
    """The weights to continue from while the network holds averaged ones, otherwise empty."""
    best_epoch: int = 0
    """Number of the best epoch, counted from 1."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """Copies of all trainable tensors after the best epoch, by name in the state dict of the network."""
    best_logits: Tensor | None = None
    """Validation logits `[N, C]` float32 after the best epoch, on the CPU."""
    stop_reason: str = ""
    """Why training stopped before the last epoch: `patience` or `asked`; otherwise empty."""


def fit(
    data: Data,
    plan: TrainingPlan,
    step_config: StepConfig,
    compute: Compute,
    state: TrainState,
    on_step: OnStep = ignore_step,
    on_epoch: Callable[[Epoch], bool | None] = lambda epoch: None,
    save: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    """Train the network of the plan in place, restore the weights of the best epoch, and return the state.

    Training ends after the last epoch, when `patience` is exhausted, or when `on_epoch` returns True. The best epoch is the
    first with the best monitored metric; ties are broken by the lower validation loss. `save` is called after every epoch.
    Raises InatFtError when the training loss is not finite.
    """
    net, names = plan.net, plan.trainable_state_names()
    ahead = epochs(data, plan, step_config, compute, state, on_step)
    for epoch, logits in ahead if not state.stop_reason else ():
        best = state.history[state.best_epoch - 1] if state.best_epoch else None
        state.history.append(epoch)
        if plan.starts_phase(epoch.epoch - 1):
            state.early_stopping.reset()
        if best is None or state.early_stopping.score(epoch) > state.early_stopping.score(best):
            state.best_weights, state.best_epoch, state.best_logits = copies(net, names), epoch.epoch, logits.cpu()
        if state.early_stopping.step(epoch):
            state.stop_reason = "patience"
        if compute.process_group.broadcast(on_epoch(epoch)) and not state.stop_reason:
            state.stop_reason = "asked"
        if state.epoch == len(plan.epochs):
            state.stop_reason = ""
        save(state)
        if state.stop_reason:
            break
    restore(net, state.best_weights)
    return state


def copies(net: Net, names: list[str]) -> dict[str, Tensor]:
    """Return copies of tensors of the state dict."""
    state = net.state_dict()
    return {name: state[name].detach().clone() for name in names}


@torch.no_grad()
def restore(net: Net, weights: dict[str, Tensor]) -> None:
    """Copy tensors into the state dict, in place."""
    state = net.state_dict()
    for name, tensor in weights.items():
        state[name].copy_(tensor)


def epochs(
    data: Data,
    plan: TrainingPlan,
    step_config: StepConfig,
    compute: Compute,
    state: TrainState,
    on_step: OnStep = ignore_step,
) -> Iterator[tuple[Epoch, Tensor]]:
    """Train in place; after each epoch, yield its record and the validation logits `[N, C]` float32 on the device.

    Between epochs the network holds the averaged weights, if any. Random numbers depend on the seed and the number of the
    epoch only, so a resumed training gives the same result as an uninterrupted one.
    """
    net, config, seed = plan.net, step_config.config, step_config.seed
    average = make_average(plan, config, state.average_state)

    def after_step(done: int, total: int, loss: float | None, accuracy: float | None) -> None:
        average.after_step()
        state.steps += 1
        on_step(done, total, loss, accuracy)

    while state.epoch < len(plan.epochs):
        started, number = time.perf_counter(), state.epoch
        restore(net, state.raw_weights)
        state.raw_weights = {}
        # averages also change stages that were trained earlier and are frozen now
        prefix = plan.frozen_prefix(number, since_start=config.average != "none")
        scheduler = _scheduler(plan, config, state)
        average.before_epoch(number)
        seed_layers(seed, number)
        tail = step_config.compiled_tail(net, prefix)
        forward, val = Forward(net, data.train(prefix, number), prefix, compute, tail), data.val(prefix, number)
        order = data.sample_order(epoch_generator(seed, number, "order"))
        loss, accuracy = train_one_epoch(forward, step_config, scheduler, order, after_step)
        _use_average(plan, average, state, forward)
        val_loss, val_accuracy, logits = evaluate(net, val, compute, prefix)
        state.epoch += 1
        epoch = Epoch(
            epoch=state.epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=_finite(val_loss, state.epoch, step_config.log),
            val_accuracy=val_accuracy,
            lr=scheduler.lr,
            seconds=time.perf_counter() - started,
        )
        yield epoch, logits


def _finite(val_loss: float, epoch: int, log: Log) -> float | None:
    """Return a validation loss, or None with a warning if it is not finite."""
    if math.isfinite(val_loss):
        return val_loss
    log(
        f"warning: the validation loss is {val_loss} after epoch {epoch}, so the network's output is not finite; "
        "try a lower learning rate: --lr"
    )
    return None


def _scheduler(plan: TrainingPlan, config: OptimConfig, state: TrainState) -> LRScheduler:
    """Freeze and unfreeze layers for the next epoch; return the schedule, with a new optimizer if a phase starts."""
    trainable = plan.epochs[state.epoch]
    plan.net.set_trainable(trainable.scales)
    if state.optimizer is None or plan.starts_phase(state.epoch):
        state.optimizer = make_optimizer(trainable, config, state.optimizer)
    first, last = plan.phase(state.epoch) if config.restart else (0, config.epochs)
    return LRScheduler(state.optimizer, config, state.epoch - first, last - first)


def _use_average(plan: TrainingPlan, average: WeightAverage, state: TrainState, forward: Forward) -> None:
    """Load the averaged weights, if any, into the network and keep the raw ones in the state."""
    averaged = average.after_epoch(state.epoch)
    if averaged:
        state.raw_weights = copies(plan.net, plan.trainable_state_names())
        restore(plan.net, averaged)
        if average.needs_update_bn:
            update_bn(forward)


def epoch_generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a random generator on the CPU for one purpose in one epoch."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seed_layers(seed: int, epoch: int) -> None:
    """Seed the random layers of an epoch, such as dropout."""
    torch.manual_seed(epoch_generator(seed, epoch, "layers").initial_seed())
