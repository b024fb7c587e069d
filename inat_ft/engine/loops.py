"""One pass over the images: training, evaluation, or the update of BatchNorm statistics."""

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
from inat_ft.engine.optimizer import LRScheduler
from inat_ft.errors import InatFtError, UsageError
from inat_ft.models.net import Net
from inat_ft.progress import Log, ignore_log
from inat_ft.registry import OPTIMIZERS, get, plugin_errors

OnStep = Callable[[int, int, float | None, float | None], None]
"""Called after each step with (images done, images in all, loss, accuracy); the last two are None in most GPU steps."""


def ignore_step(done: int, total: int, loss: float | None, accuracy: float | None) -> None:
    """Discard the report of a step."""


_REPORT_EVERY = 50
"""GPU steps between two reports of the loss, each of which waits for the GPU."""


@dataclass
class StepConfig:
    """How a batch becomes an optimizer step. Only `accumulation_steps` and `compiled` change during training.

    class_weights: `[C]` float32 on the device. mix(inputs, labels): returns mixed inputs and targets `[B, C]`. start: for
    l2-sp, the value that each parameter is pulled to, and the strength.
    """

    config: OptimConfig
    seed: int = 0
    class_weights: Tensor | None = None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    start: dict[nn.Parameter, tuple[Tensor, float]] = field(default_factory=dict)
    compile: bool = False
    compiled: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """The compiled stages after a prefix, by its length."""
    log: Log = ignore_log
    accumulation_steps: int = 1
    """Number of micro-batches per batch; it is doubled when memory runs out."""

    def halve_micro_batch(self, rows: int) -> None:
        """Double the number of micro-batches. Raises InatFtError when they have two images, the minimum of BatchNorm."""
        if self.accumulation_steps >= rows // 2:
            raise InatFtError(
                "out of memory with micro-batches of two images", "use a smaller --image-size or backbone"
            )
        self.accumulation_steps = min(2 * self.accumulation_steps, rows // 2)
        self.log(f"memory: out of memory, so each batch of {rows} images is split into {self.accumulation_steps} parts")

    def num_micro_batches(self, size: int, process_group: ProcessGroup) -> int:
        """Return the number of micro-batches, each with at least two images and one image per process."""
        return max(1, min(self.accumulation_steps, size // max(2, process_group.size)))

    def compiled_tail(self, net: Net, prefix: int) -> Callable[[Tensor], Tensor] | None:
        """Return the compiled stages after a prefix, or None without --compile. Raises UsageError without a compiler."""
        if not self.compile or prefix == len(net.stages):
            return None
        if prefix not in self.compiled:
            if not has_compiler():
                raise UsageError(
                    "--compile requires a C++ compiler, and none is installed", "install g++, or leave it out"
                )
            self.compiled[prefix] = torch.compile(nn.Sequential(*list(net.stages.values())[prefix:]))
        return self.compiled[prefix]


@dataclass(frozen=True)
class Forward:
    """The forward pass of some images: the rest of the frozen prefix, the trainable stages and the head."""

    net: Net
    batches: Batches
    prefix: int
    compute: Compute
    compiled_tail: Callable[[Tensor], Tensor] | None = None
    """The compiled stages after the prefix, if they are compiled."""
    cores: int = field(default_factory=torch.get_num_threads)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits `[B, C]`. The head computes in float32 in every precision."""
        inputs = self._frozen(inputs)
        with self.compute.autocast():
            run = self.compiled_tail or (lambda x: self.net.forward_stages(x, self.prefix, len(self.net.stages)))
            features = run(inputs)
        logits: Tensor = self.net.head(features.float())
        return logits

    def _frozen(self, inputs: Tensor) -> Tensor:
        """Apply the stages of the frozen prefix that are not cached."""
        if self.batches.start >= self.prefix:
            return inputs
        with torch.no_grad(), threads(self.cores):
            if self.batches.frozen:
                return self.batches.frozen(inputs)
            with self.compute.autocast():
                return self.net.forward_stages(inputs, self.batches.start, self.prefix)

    def single_threaded(self) -> AbstractContextManager[None]:
        """Use one thread if only the head is trained on a CPU: more threads are slower on a busy machine."""
        only_head = self.prefix == len(self.net.stages) and self.compute.device.type == "cpu"
        return threads(1) if only_head else nullcontext()


@dataclass(frozen=True)
class Batch:
    """The rows of this process in a batch.

    size: rows of all processes. inputs: `[B, ...]`. labels: `[B]` int64. targets: the labels, or `[B, C]` if mixed.
    """

    size: int
    inputs: Tensor
    labels: Tensor
    targets: Tensor


def train_one_epoch(
    forward: Forward, step_config: StepConfig, scheduler: LRScheduler, order: Tensor, after_step: OnStep
) -> tuple[float, float]:
    """Train for one epoch; return the mean loss in nats and the accuracy. Raises InatFtError when the loss is not finite.

    order: numbers of the training images, `[M]` int64. Sums stay on the device, so that a GPU is rarely waited for.
    """
    forward.net.train()
    total = torch.zeros(2, device=forward.compute.device)
    process_group, every = forward.compute.process_group, 1 if forward.compute.device.type == "cpu" else _REPORT_EVERY
    steps, done = len(forward.batches.numbers(order)), 0
    with forward.single_threaded():
        for index, batch in enumerate(local_batches(forward, step_config, order)):
            scheduler(index, steps)
            total += step(forward, step_config, scheduler.optimizer, batch)
            done += batch.size
            loss, accuracy = (total * process_group.size / done).tolist() if index % every == 0 else (None, None)
            after_step(done, len(order), loss, accuracy)
    loss, accuracy = (process_group.all_reduce(total) / done).tolist()
    if not math.isfinite(loss):
        raise InatFtError(f"the loss is {loss}: training has diverged", "try a lower learning rate: --lr")
    return loss, accuracy


def local_batches(forward: Forward, step_config: StepConfig, order: Tensor) -> Iterator[Batch]:
    """Yield the rows of this process in each batch, with mixed inputs if configured.

    An image may be mixed with one of another process, so each process reads the whole batch in this case.
    """
    process_group = forward.compute.process_group

    def local_rows(size: int) -> Tensor:
        return process_group.local_rows(size, step_config.num_micro_batches(size, process_group))

    def read_rows(size: int) -> slice | Tensor:
        return slice(size) if step_config.mix or process_group.size == 1 else local_rows(size)

    sizes = map(len, forward.batches.numbers(order))
    for size, (inputs, labels) in zip(sizes, forward.batches(order, read_rows), strict=True):
        if step_config.mix is None:
            yield Batch(size, inputs, labels, labels)
            continue
        mixed, targets = step_config.mix(inputs, labels)
        own = slice(size) if process_group.size == 1 else local_rows(size).to(labels.device)
        yield Batch(size, mixed[own], labels[own], targets[own])


def step(forward: Forward, step_config: StepConfig, optimizer: Optimizer, batch: Batch) -> Tensor:
    """Take one optimizer step; return the summed loss and the number of correct rows of this process, `[2]`."""
    process_group, config = forward.compute.process_group, step_config.config
    while True:
        try:
            sums = _backward(forward, step_config, batch)
            break
        except (RuntimeError, MemoryError) as error:
            if process_group.size > 1 or not is_out_of_memory(error):
                raise
        optimizer.zero_grad(set_to_none=True)
        step_config.halve_micro_batch(len(batch.labels))
        forward.compute.free_memory()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    process_group.all_reduce_gradients(parameters)
    for parameter, (start, strength) in step_config.start.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=strength)
    if config.clip_norm:
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    with plugin_errors(OPTIMIZERS, get(OPTIMIZERS, config.optimizer).load(), "step()"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums


def _backward(forward: Forward, step_config: StepConfig, batch: Batch) -> Tensor:
    """Accumulate the gradients of the mean loss of a batch, one micro-batch at a time.

    As in `nn.CrossEntropyLoss`, the mean with class weights is divided by the sum of the weights of the labels.
    """
    process_group, sums = forward.compute.process_group, torch.zeros(2, device=batch.labels.device)
    weights, smoothing = step_config.class_weights, step_config.config.label_smoothing
    divisor: Tensor | int = batch.size
    if weights is not None and batch.targets.ndim == 1:
        divisor = process_group.all_reduce(weights[batch.labels].sum())
    start = 0
    for whole, own in process_group.micro_batches(batch.size, step_config.num_micro_batches(batch.size, process_group)):
        rows = slice(start, start := start + len(own))
        process_group.rows.start, process_group.rows.total = own.start - whole.start, len(whole)
        logits = forward.logits(batch.inputs[rows])
        loss = F.cross_entropy(logits, batch.targets[rows], weights, label_smoothing=smoothing, reduction="sum")
        torch.autograd.backward(loss / divisor)
        sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == batch.labels[rows]).sum()])
    return sums


@torch.no_grad()
def evaluate(net: Net, batches: Batches, compute: Compute, prefix: int = 0) -> tuple[float, float, Tensor]:
    """Return the mean loss in nats, the accuracy and the logits `[N, C]` float32 on the device, in the order of the rows.

    An image with a logit that is not finite counts as wrong.
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
        correct = ((logits.argmax(1) == batches.labels) & logits.isfinite().all(1)).float().mean()
    value, accuracy = torch.stack([loss, correct]).tolist()
    return value, accuracy, logits


def _in_micro_batches(forward: Forward, inputs: Tensor) -> Iterator[Tensor]:
    """Yield the logits of a batch; split it in halves while memory runs out."""
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
    """Compute the statistics of the trainable BatchNorm layers again, over one pass of the training images."""
    forward.net.train()
    norms = [norm for norm in forward.net.batch_norms() if norm.training]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    process_group = forward.compute.process_group
    for numbers, (inputs, _) in zip(forward.batches.numbers(), forward.batches(None, process_group.shard), strict=True):
        process_group.rows.start, process_group.rows.total = process_group.shard(len(numbers)).start, len(numbers)
        forward.logits(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
