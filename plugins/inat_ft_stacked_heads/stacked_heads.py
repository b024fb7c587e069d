"""Train the heads of several runs in the same steps, when all of them have the same cached features as their input.

The product of a batch with one head is small, so most of its time is overhead. The heads are stacked instead: one matrix
product serves all heads with the same dropout. Each run keeps its own optimizer, learning rate and dropout mask, and its
results equal those of a run alone within rounding.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from inat_ft.data.batches import ResidentRows
from inat_ft.engine.device import is_out_of_memory
from inat_ft.engine.fit import EpochResult, EpochTask
from inat_ft.engine.loops import diverged
from inat_ft.errors import InatFtError
from inat_ft.models.dropout import Dropout
from inat_ft.threads import torch_threads


def stack_key(task: EpochTask) -> tuple[object, ...] | None:
    """Return a key that is equal for epochs that can run together, or None if this one runs alone."""
    forward, config = task.forward, task.step_config
    optim, batches, head = config.config, forward.batches, forward.net.head
    alone = (
        forward.prefix < len(forward.net.stages)
        or batches.start < forward.prefix
        or forward.compute.process_group.size > 1
        or [type(layer) for layer in head] != [Dropout, nn.Linear]
        or type(task.scheduler.optimizer) not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
        or config.accumulation_steps > 1
        or config.class_weights is not None
        or config.mix is not None
        or config.scaler.is_enabled()
        or bool(config.start)
        or bool(optim.clip_norm)
        or optim.average != "none"
    )
    if alone or not isinstance(batches.source, ResidentRows) or not isinstance(task.val.source, ResidentRows):
        return None
    if batches.source.positions is not None:
        return None
    data, val = batches.source.data, task.val.source.data
    order = hash(task.order.numpy().tobytes())
    return data.data_ptr(), val.data_ptr(), batches.batch_size, order, optim.label_smoothing, forward.compute.device


@dataclass
class _Group:
    """Heads with the same dropout mask."""

    heads: list[nn.Linear]
    dropout: nn.Module
    random_state: Tensor | None
    """State of the random numbers, which are those of a run alone; None without dropout."""

    def logits(self, features: Tensor) -> Tensor:
        """Return logits `[B, K, C]` of features `[B, D]`."""
        if self.random_state is not None:
            random = torch if features.is_cpu else torch.get_device_module(features.device)
            random.set_rng_state(self.random_state)
            features = self.dropout(features)
            self.random_state = random.get_rng_state()
        return _linear(self.heads, features)


def _linear(heads: Sequence[nn.Linear], features: Tensor) -> Tensor:
    """Return logits `[B, K, C]`: features `[B, D]` times the weights of all heads in one product."""
    weight = torch.cat([head.weight for head in heads])
    bias = None if heads[0].bias is None else torch.cat([head.bias for head in heads])
    return F.linear(features, weight, bias).view(len(features), len(heads), -1)


@dataclass
class _Stack:
    tasks: Sequence[EpochTask]
    groups: list[_Group] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Sort the runs by dropout and seed, so that each group is contiguous."""
        self.tasks = sorted(self.tasks, key=_dropout)
        device = self.tasks[0].forward.compute.device
        random = torch if device.type == "cpu" else torch.get_device_module(device)
        for probability, seed in dict.fromkeys(map(_dropout, self.tasks)):
            members = [task for task in self.tasks if _dropout(task) == (probability, seed)]
            torch.manual_seed(seed)
            state = random.get_rng_state() if probability else None
            self.groups.append(_Group(list(map(_head, members)), members[0].forward.net.head[0], state))

    def train(self) -> Tensor:
        """Train all heads for one epoch; return the summed loss and the number of correct rows of each, `[K, 2]`."""
        first, sums = self.tasks[0], torch.zeros(len(self.tasks), 2, device=self.tasks[0].forward.compute.device)
        smoothing, steps, done = (
            first.step_config.config.label_smoothing,
            len(first.forward.batches.numbers(first.order)),
            0,
        )
        optimizers = _join([task.scheduler.optimizer for task in self.tasks])
        for task in self.tasks:
            task.forward.net.head.train()
        for index, (inputs, labels) in enumerate(first.forward.batches(first.order)):
            for task in self.tasks:
                task.scheduler(index, steps)
            logits = torch.cat([group.logits(inputs.float()) for group in self.groups], 1)
            losses = _cross_entropy(logits, labels, smoothing)
            torch.autograd.backward((losses / len(labels)).sum())
            done += len(labels)
            with torch.no_grad():
                sums += torch.stack([losses, (logits.argmax(2) == labels[:, None]).sum(0)], 1)
            for optimizer in optimizers:
                optimizer.step()
            for task in self.tasks:
                task.after_step(done, len(first.order), None, None)
        for optimizer in optimizers:
            optimizer.close()
        return sums / done

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy of each head, `[K, 2]`, and the logits `[N, K, C]`."""
        first = self.tasks[0]
        heads = [_head(task) for task in self.tasks]
        logits = torch.cat([_linear(heads, inputs.float()) for inputs, _ in first.val()])
        labels = first.val.labels
        correct = (logits.argmax(2) == labels[:, None]) & logits.isfinite().all(2)
        return torch.stack([_cross_entropy(logits, labels) / len(labels), correct.float().mean(0)], 1), logits


class _JointOptimizer:
    """Several optimizers of one class in one call, with one group for all parameters that have the same settings.

    Torch's fused optimizers compute each element by itself, so the results are those of separate calls.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = optimizers
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.joint = copy.copy(optimizers[0])
        self.joint.state = defaultdict(dict)
        for optimizer in optimizers:
            self.joint.state.update(optimizer.state)

    def step(self) -> None:
        """Take one step with the gradients of all parameters, and clear them."""
        merged: dict[tuple[Any, ...], dict[str, Any]] = {}
        for group in self.groups:
            key = tuple(value for name, value in group.items() if name not in ("params", "lr_scale"))
            merged.setdefault(key, {**group, "params": []})["params"] += group["params"]
        self.joint.param_groups = list(merged.values())
        self.joint.step()
        self.joint.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Give each optimizer the state of its parameters."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                optimizer.state.update({p: self.joint.state[p] for p in group["params"] if p in self.joint.state})


def _join(optimizers: Sequence[Optimizer]) -> list[_JointOptimizer]:
    by_class: dict[type[Optimizer], list[Optimizer]] = {}
    for optimizer in optimizers:
        by_class.setdefault(type(optimizer), []).append(optimizer)
    return [_JointOptimizer(each) for each in by_class.values()]


def run_together(tasks: Sequence[EpochTask]) -> list[EpochResult | Exception]:
    """Run epochs of several trainings, in the same steps where that is possible; return the result or error of each."""
    stacks: dict[object, list[EpochTask]] = {}
    for task in tasks:
        stacks.setdefault(stack_key(task) or id(task), []).append(task)
    results: dict[int, EpochResult | Exception] = {}
    for stack in stacks.values():
        found = _run_alone(stack) if len(stack) == 1 else _run_stack(stack)
        results |= zip(map(id, stack), found, strict=True)
    return [results[id(task)] for task in tasks]


def _run_alone(tasks: Sequence[EpochTask]) -> list[EpochResult | Exception]:
    results: list[EpochResult | Exception] = []
    for task in tasks:
        try:
            results.append(task.run())
        except Exception as error:
            results.append(error)
    return results


def _run_stack(tasks: Sequence[EpochTask]) -> Sequence[EpochResult | Exception]:
    """Run a stack; if memory runs out, restore the heads and run one after the other."""
    saved = [copy.deepcopy((_head(t).state_dict(), t.scheduler.optimizer.state_dict())) for t in tasks]
    try:
        return run_stacked(tasks)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    tasks[0].forward.compute.free_memory()
    for task, (head, optimizer) in zip(tasks, saved, strict=True):
        _head(task).load_state_dict(head)
        task.scheduler.optimizer.load_state_dict(optimizer)
    return _run_alone(tasks)


def run_stacked(tasks: Sequence[EpochTask]) -> list[EpochResult | InatFtError]:
    """Run epochs with the same `stack_key` together, and train their heads in place.

    Return the result of each, or the error of a run whose loss is not finite.
    """
    stack = _Stack(tasks)
    is_cpu = tasks[0].forward.compute.device.type == "cpu"
    with torch_threads(1 if is_cpu else torch.get_num_threads()):
        trained = stack.train().tolist()
        for task in stack.tasks:
            task.before_val(task.forward)
            task.forward.net.head.eval()
        values, logits = stack.evaluate()
    results: dict[int, EpochResult | InatFtError] = {}
    for number, (task, (loss, accuracy), (val_loss, val_accuracy)) in enumerate(
        zip(stack.tasks, trained, values.tolist(), strict=True)
    ):
        result = EpochResult(loss, accuracy, val_loss, val_accuracy, logits[:, number].contiguous())
        results[id(task)] = result if math.isfinite(loss) else diverged(loss)
    return [results[id(task)] for task in tasks]


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the summed loss of each head, `[K]`, from logits `[B, K, C]` and labels `[B]`."""
    targets = labels[:, None].expand(logits.shape[:2])
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing, reduction="none")
    return losses.view(targets.shape).sum(0)


def _head(task: EpochTask) -> nn.Linear:
    head: nn.Linear = task.forward.net.head[1]  # type: ignore[assignment]  # checked by stack_key
    return head


def _dropout(task: EpochTask) -> tuple[float, int]:
    """Return the probability and the seed of a run's dropout."""
    probability = float(task.forward.net.head[0].p)  # type: ignore[arg-type]  # checked by stack_key
    return probability, task.layers_seed if probability else 0
