"""The training loop of all strategies."""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches
from inat_ft.engine.device import Compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.forward import Forward, StepConfig
from inat_ft.engine.loops import OnStep, evaluate, ignore_step, train_one_epoch, update_bn
from inat_ft.engine.optimizer import LRScheduler, make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.engine.weight_averaging import WeightAverage
from inat_ft.models.net import Net
from inat_ft.progress import Log
from inat_ft.records import Epoch
from inat_ft.registry import FEATURES, get


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
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the scale of the loss in fp16."""
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
    _lines: list[str] = field(default_factory=list, repr=False)

    def history_lines(self) -> str:
        """Return the history as JSON lines. Each epoch is serialized once: a run may have thousands."""
        self._lines += [f"{epoch.model_dump_json()}\n" for epoch in self.history[len(self._lines) :]]
        return "".join(self._lines)


@dataclass
class EpochResult:
    """The outcome of an epoch. Losses are means in nats; val_logits: `[N, C]` float32 on the device."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_logits: Tensor


@dataclass
class EpochTask:
    """One epoch of a training, ready to run: training images, then validation images."""

    forward: Forward
    step_config: StepConfig
    scheduler: LRScheduler
    order: Tensor
    """Numbers of the training images, `[M]` int64."""
    layers_seed: int
    """Seed of the random layers, such as dropout."""
    val: Batches
    after_step: OnStep
    before_val: Callable[[Forward], None]
    """Called between training and validation; loads averaged weights, if any."""

    def run(self) -> EpochResult:
        """Run the epoch, and train the network in place. Raises InatFtError when the training loss is not finite."""
        forward = self.forward
        torch.manual_seed(self.layers_seed)
        loss, accuracy = train_one_epoch(forward, self.step_config, self.scheduler, self.order, self.after_step)
        self.before_val(forward)
        return EpochResult(loss, accuracy, *evaluate(forward.net, self.val, forward.compute, forward.prefix))


@dataclass
class WriteTask:
    """Files of a finished training, which can be written while other runs train."""

    run: Callable[[], None]


Task = EpochTask | WriteTask
T = TypeVar("T")
Tasks = Generator[Task, Any, T]


def run_tasks(tasks: Tasks[T]) -> T:
    """Run each task of a generator, which receives its result or its error, and return the generator's result."""
    try:
        task = next(tasks)
        while True:
            try:
                result = task.run()
            except BaseException as error:
                task = tasks.throw(error)
            else:
                task = tasks.send(result)
    except StopIteration as end:
        return cast(T, end.value)


def fit(
    data: Data,
    plan: TrainingPlan,
    step_config: StepConfig,
    compute: Compute,
    state: TrainState,
    on_step: OnStep = ignore_step,
    on_epoch: Callable[[Epoch], bool | None] = lambda epoch: None,
    save: Callable[[TrainState], None] = lambda state: None,
) -> Tasks[TrainState]:
    """Train the network of the plan in place, restore the weights of the best epoch, and return the state.

    Each epoch is yielded as a task, so that the caller can run tasks of several trainings together. Training ends after the
    last epoch, when `patience` is exhausted, or when `on_epoch` returns True. The best epoch is the first with the best
    monitored metric; ties are broken by the lower validation loss. `save` is called after every epoch. Random numbers depend
    on the seed and the number of the epoch only, so a resumed training gives the same result as an uninterrupted one. Raises
    InatFtError when the training loss is not finite.
    """
    net, names = plan.net, plan.trainable_state_names()
    average, config = WeightAverage(), step_config.config
    if config.average != "none":
        average = get(FEATURES, "average").load()(plan, config, state.average_state)

    def after_step(done: int, total: int, loss: float | None, accuracy: float | None) -> None:
        average.after_step()
        state.steps += 1
        on_step(done, total, loss, accuracy)

    while state.epoch < len(plan.epochs) and not state.stop_reason:
        started = time.perf_counter()
        task = _next_task(data, plan, step_config, compute, state, average, after_step)
        result = yield task
        state.epoch, state.scaler = state.epoch + 1, step_config.scaler.state_dict()
        best = state.history[state.best_epoch - 1] if state.best_epoch else None
        epoch = _epoch(result, state.epoch, task, time.perf_counter() - started)
        state.history.append(epoch)
        if plan.starts_phase(epoch.epoch - 1):
            state.early_stopping.reset()
        if best is None or state.early_stopping.score(epoch) > state.early_stopping.score(best):
            state.best_weights, state.best_epoch = copies(net, names), epoch.epoch
            state.best_logits = result.val_logits.cpu()
        if state.early_stopping.step(epoch):
            state.stop_reason = "patience"
        if compute.process_group.broadcast(on_epoch(epoch)) and not state.stop_reason:
            state.stop_reason = "asked"
        if state.epoch == len(plan.epochs):
            state.stop_reason = ""
        save(state)
    restore(net, state.best_weights)
    return state


def copies(net: Net, names: list[str]) -> dict[str, Tensor]:
    """Return copies of tensors of the state dict."""
    return {name: tensor.clone() for name, tensor in tensors_of(net, names).items()}


def tensors_of(net: Net, names: Iterable[str]) -> dict[str, Tensor]:
    """Return tensors of the state dict, which takes long to make for a few of them."""
    return {name: attrgetter(name)(net).detach() for name in names}


@torch.no_grad()
def restore(net: Net, weights: dict[str, Tensor]) -> None:
    """Copy tensors into the state dict, in place."""
    for name, tensor in tensors_of(net, weights).items():
        tensor.copy_(weights[name])


def _next_task(
    data: Data,
    plan: TrainingPlan,
    step_config: StepConfig,
    compute: Compute,
    state: TrainState,
    average: WeightAverage,
    after_step: OnStep,
) -> EpochTask:
    """Prepare the next epoch. Between epochs the network holds the averaged weights, if any."""
    config, seed, number = step_config.config, step_config.seed, state.epoch
    if state.scaler:
        step_config.scaler.load_state_dict(state.scaler)
    restore(plan.net, state.raw_weights)
    state.raw_weights = {}
    # averages also change stages that were trained earlier and are frozen now
    prefix = plan.frozen_prefix(number, since_start=config.average != "none")
    scheduler = _scheduler(plan, config, state)
    average.before_epoch(number)
    tail = step_config.tail(plan.net, prefix, compute)
    return EpochTask(
        forward=Forward(plan.net, data.train(prefix, number), prefix, compute, tail),
        step_config=step_config,
        scheduler=scheduler,
        order=data.sample_order(epoch_generator(seed, number, "order")),
        layers_seed=layers_seed(seed, number),
        val=data.val(prefix, number),
        after_step=after_step,
        before_val=partial(_use_average, plan, average, state),
    )


def _epoch(result: EpochResult, number: int, task: EpochTask, seconds: float) -> Epoch:
    return Epoch(
        epoch=number,
        train_loss=result.train_loss,
        train_accuracy=result.train_accuracy,
        val_loss=_finite(result.val_loss, number, task.step_config.log),
        val_accuracy=result.val_accuracy,
        lr=task.scheduler.lr,
        seconds=seconds,
    )


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


def layers_seed(seed: int, epoch: int) -> int:
    """Return the seed of the random layers of an epoch, such as dropout."""
    return epoch_generator(seed, epoch, "layers").initial_seed()
