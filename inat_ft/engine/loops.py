"""One pass over images: of learning, in steps, or of evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches
from inat_ft.engine.device import Compute, has_compiler, is_out_of_memory, threads
from inat_ft.engine.distributed import ProcessGroup
from inat_ft.errors import InatFtError, UsageError
from inat_ft.models.net import Net
from inat_ft.progress import Log, ignore_log
from inat_ft.registry import OPTIMIZERS, get, plugin_errors

OnStep = Callable[[int, int, float | None, float | None], None]
"""Called with (images done, images in all, loss, accuracy) now and then; the last two are None but now and then."""

_REPORT_EVERY = 50
"""Steps between two figures of the progress, on a GPU, which must be waited for."""


@dataclass
class StepConfig:
    """How a batch becomes a step: what stays the same through a training, save for `parts`.

    class_weights: `[C]` float32 on the device; mix(inputs, labels): inputs blended with one another and targets
    `[B, C]`; start: what l2-sp pulls each parameter to, and how strongly; compile: whether the network is compiled.
    """

    config: OptimConfig
    class_weights: Tensor | None = None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    start: dict[nn.Parameter, tuple[Tensor, float]] = field(default_factory=dict)
    compile: bool = False
    compiled: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """The stages after a prefix of so many."""
    log: Log = ignore_log
    accumulation_steps: int = 1
    """Into how many parts a batch is split, one after the other; grows when memory runs out."""

    def halve_micro_batch(self, rows: int) -> None:
        """Twice as many parts. Raises InatFtError when a part has two images already, the fewest that BatchNorm takes."""
        if self.accumulation_steps >= rows // 2:
            raise InatFtError("out of memory, with two images at a time", "try a smaller --image-size or backbone")
        self.accumulation_steps = min(2 * self.accumulation_steps, rows // 2)
        self.log(
            f"memory: a batch of {rows} images is computed in {self.accumulation_steps} parts, since it does not fit at once"
        )

    def num_micro_batches(self, size: int, process_group: ProcessGroup) -> int:
        """Return into how many micro-batches a batch is split: each has two images, and one for each process, at least."""
        return max(1, min(self.accumulation_steps, size // max(2, process_group.size)))

    def compiled_tail(self, net: Net, prefix: int) -> Callable[[Tensor], Tensor] | None:
        """What comes after a prefix, compiled once for all epochs in which the prefix is the same; None: not compiled.

        Raises UsageError without a compiler.
        """
        if not self.compile or prefix == len(net.stages):
            return None
        if prefix not in self.compiled:
            if not has_compiler():
                raise UsageError("--compile needs a C++ compiler, and there is none", "install g++, or leave it out")
            self.compiled[prefix] = torch.compile(nn.Sequential(*list(net.stages.values())[prefix:]))
        return self.compiled[prefix]


@dataclass(frozen=True)
class Forward:
    """Some images on their way through what the frozen prefix makes of them, then through what learns."""

    net: Net
    batches: Batches
    prefix: int
    compute: Compute
    cores: int = field(default_factory=torch.get_num_threads)
    compiled_tail: Callable[[Tensor], Tensor] | None = None
    """The stages after the prefix, compiled; None runs them as they are."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` float32. The head always computes in float32: it costs nothing and decides the answer."""
        inputs = self._frozen(inputs)
        with self.compute.autocast():
            run = self.compiled_tail or (lambda x: self.net.forward_stages(x, self.prefix, len(self.net.stages)))
            features = run(inputs)
        logits: Tensor = self.net.head(features.float())
        return logits

    def _frozen(self, inputs: Tensor) -> Tensor:
        """What is left of the frozen prefix."""
        if self.batches.start >= self.prefix:
            return inputs
        with torch.no_grad(), threads(self.cores):
            if self.batches.frozen:
                return self.batches.frozen(inputs)
            with self.compute.autocast():
                return self.net.forward_stages(inputs, self.batches.start, self.prefix)

    def single_threaded(self) -> AbstractContextManager[None]:
        """One thread when only the head learns on a CPU: more gain little, and lose much on a busy machine."""
        only_head = self.prefix == len(self.net.stages) and self.compute.device.type == "cpu"
        return threads(1) if only_head else nullcontext()


def train_one_epoch(
    forward: Forward,
    step_config: StepConfig,
    optimizer: Optimizer,
    order: Tensor,
    set_rate: Callable[[int, int], None],
    after: OnStep,
) -> tuple[float, float]:
    """One pass of learning. Returns the mean loss in nats per image and the share that was right.

    set_rate(step, steps): called before each step, counted from 0; after: called after each step. Loss and accuracy are
    summed on the device; a GPU is waited for now and then, for the progress, and at the end.
    """
    forward.net.train()
    total = torch.zeros(2, device=forward.compute.device)
    process_group, every = forward.compute.process_group, 1 if forward.compute.device.type == "cpu" else _REPORT_EVERY
    steps = len(forward.batches.numbers(order))
    done = 0
    with forward.single_threaded():
        for index, (size, inputs, labels) in enumerate(own_batches(forward, step_config, order)):
            set_rate(index, steps)
            total += step(forward, step_config, optimizer, inputs, labels, size)
            done += size
            loss, accuracy = (total * process_group.size / done).tolist() if index % every == 0 else (None, None)
            after(done, len(order), loss, accuracy)
    loss, accuracy = (process_group.all_reduce(total) / done).tolist()
    if not math.isfinite(loss):
        raise InatFtError(f"the loss is {loss}: training has diverged", "try a lower learning rate: --lr")
    return loss, accuracy


def own_batches(forward: Forward, step_config: StepConfig, order: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield, for each batch of the whole training, its size and what `step` takes of it in this process.

    Images are blended with others of the whole batch, so that every process needs all of it.
    """
    process_group = forward.compute.process_group

    def wanted(size: int) -> slice | Tensor:
        return (
            slice(size)
            if step_config.mix or process_group.size == 1
            else process_group.local_rows(size, step_config.num_micro_batches(size, process_group))
        )

    sizes = map(len, forward.batches.numbers(order))
    for size, (inputs, labels) in zip(sizes, forward.batches(order, wanted), strict=True):
        yield size, inputs, labels


def step(
    forward: Forward, step_config: StepConfig, optimizer: Optimizer, inputs: Tensor, labels: Tensor, size: int
) -> Tensor:
    """Take one step on this process's rows of a batch of `size` images; on all rows where they are to be blended.

    Returns the rows' summed loss and number of right answers, `[2]` on the device.
    """
    process_group, targets = forward.compute.process_group, labels
    if step_config.mix:
        inputs, targets = step_config.mix(inputs, labels)
        if process_group.size > 1:
            own = process_group.local_rows(size, step_config.num_micro_batches(size, process_group)).to(labels.device)
            inputs, labels, targets = inputs[own], labels[own], targets[own]
    while True:
        try:
            sums = _gradients(forward, step_config, inputs, labels, targets, size)
            break
        except (RuntimeError, MemoryError) as error:
            if process_group.size > 1 or not is_out_of_memory(error):
                raise
        optimizer.zero_grad(set_to_none=True)
        step_config.halve_micro_batch(len(labels))
        forward.compute.free_memory()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    process_group.all_reduce_gradients(parameters)
    for parameter, (start, strength) in step_config.start.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=strength)
    if step_config.config.clip_norm:
        nn.utils.clip_grad_norm_(parameters, step_config.config.clip_norm)
    with plugin_errors(OPTIMIZERS, get(OPTIMIZERS, step_config.config.optimizer).load(), "step()"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums


def _gradients(
    forward: Forward, step_config: StepConfig, inputs: Tensor, labels: Tensor, targets: Tensor, size: int
) -> Tensor:
    """Add up the gradients of the mean loss over the batch, micro-batch by micro-batch.

    The mean is that of `nn.CrossEntropyLoss`: with class weights and labels that are not blended, the sum is divided by
    the sum of the labels' weights over the whole batch.
    """
    process_group, sums = forward.compute.process_group, torch.zeros(2, device=labels.device)
    divisor: Tensor | int = size
    if step_config.class_weights is not None and targets.ndim == 1:
        divisor = process_group.all_reduce(step_config.class_weights[labels].sum())
    start = 0
    for whole, own in process_group.micro_batches(size, step_config.num_micro_batches(size, process_group)):
        rows = slice(start, start := start + len(own))
        x, y, target = inputs[rows], labels[rows], targets[rows]
        process_group.rows.start, process_group.rows.total = own.start - whole.start, len(whole)
        logits = forward.logits(x)
        smoothing = step_config.config.label_smoothing
        loss = F.cross_entropy(logits, target, step_config.class_weights, label_smoothing=smoothing, reduction="sum")
        torch.autograd.backward(loss / divisor)
        sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == y).sum()])
    return sums


@torch.no_grad()
def evaluate(net: Net, batches: Batches, compute: Compute, prefix: int = 0) -> tuple[float, float, Tensor]:
    """Return the mean loss in nats, the accuracy, and the logits `[N, C]` float32 on the device, in the rows' order.

    An image whose logits are not finite is not right.
    """
    net.eval()
    forward, process_group = Forward(net, batches, max(prefix, batches.start), compute), compute.process_group
    order = torch.arange(batches.num_images)
    with forward.single_threaded():
        own = [
            logits
            for inputs, _ in batches(order[process_group.shard(len(order))])
            for logits in _in_micro_batches(forward, inputs)
        ]
        mine = torch.cat(own) if own else torch.zeros(0, net.num_classes, device=batches.labels.device)
        logits = torch.cat(process_group.all_gather(mine, process_group.shard_sizes(len(order))))
        loss = F.cross_entropy(logits, batches.labels)
        right = ((logits.argmax(1) == batches.labels) & logits.isfinite().all(1)).float().mean()
    value, accuracy = torch.stack([loss, right]).tolist()
    return value, accuracy, logits


def _in_micro_batches(forward: Forward, inputs: Tensor) -> Iterator[Tensor]:
    """The logits of a batch, in halves of halves when memory runs out."""
    try:
        yield forward.logits(inputs)
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(inputs) == 1:
            raise
    forward.compute.free_memory()
    for half in inputs.tensor_split(2):
        yield from _in_micro_batches(forward, half)


@torch.no_grad()
def update_bn(forward: Forward) -> None:
    """Measure the statistics of the BatchNorm layers that learn anew, over one pass of the training images."""
    forward.net.train()
    norms = [norm for norm in forward.net.batch_norms() if norm.training]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    process_group = forward.compute.process_group
    for numbers, (inputs, _) in zip(forward.batches.numbers(), forward.batches(None, process_group.shard), strict=True):
        process_group.rows.start, process_group.rows.total = process_group.shard(len(numbers)).start, len(numbers)
        forward.logits(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
