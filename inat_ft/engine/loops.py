"""One pass over the images: training, evaluation, or the update of BatchNorm statistics."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from inat_ft.data.batches import Batches
from inat_ft.engine.device import Compute, is_out_of_memory, too_little_memory
from inat_ft.engine.distributed import accumulates, communication
from inat_ft.engine.forward import Forward, StepConfig, Tail
from inat_ft.engine.optimizer import LRScheduler
from inat_ft.errors import InatFtError
from inat_ft.models.net import Net
from inat_ft.registry import OPTIMIZERS, get, plugin_errors

OnStep = Callable[[int, int, float | None, float | None], None]
"""Called after each step with (images done, images in all, loss, accuracy); the last two are None in most GPU steps."""


def ignore_step(done: int, total: int, loss: float | None, accuracy: float | None) -> None:
    """Discard the report of a step."""


_REPORT_EVERY = 50
"""GPU steps between two reports of the loss, each of which waits for the GPU."""


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
            is_due = (index + 1) % every == 0
            loss, accuracy = (total * process_group.size / done).tolist() if is_due else (None, None)
            after_step(done, len(order), loss, accuracy)
    loss, accuracy = (process_group.all_reduce(total) / done).tolist()
    if not math.isfinite(loss):
        raise diverged(loss)
    return loss, accuracy


def diverged(loss: float) -> InatFtError:
    """Return the error of a training loss that is not finite."""
    return InatFtError(f"the loss is {loss}: training has diverged", "try a lower learning rate: --lr")


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
    config, scaler = step_config.config, step_config.scaler
    while True:
        try:
            sums = _backward(forward, step_config, batch)
            break
        except (RuntimeError, MemoryError) as error:
            not_compiled = step_config.has_failed_to_compile(error)
            if not not_compiled and (forward.compute.process_group.size > 1 or not is_out_of_memory(error)):
                raise
        optimizer.zero_grad(set_to_none=True)  # here, because the error above keeps activations in memory
        if not_compiled:
            step_config.stop_compiling()
        else:
            step_config.halve_micro_batch(len(batch.labels))
            forward.compute.free_memory()
    scaler.unscale_(optimizer)
    _pull_to_start(step_config.start)
    if config.clip_norm:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], config.clip_norm)
    if scaler.is_enabled() and isinstance(optimizer, torch.optim.SGD):
        # if the first step is skipped inside the fused kernel, the momentum stays uninitialized
        vars(optimizer)["_step_supports_amp_scaling"] = False
    with plugin_errors(OPTIMIZERS, get(OPTIMIZERS, config.optimizer).load(), "step()"):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return sums


@torch.no_grad()
def _pull_to_start(start: dict[float, dict[nn.Parameter, Tensor]]) -> None:
    """Add the gradient of l2-sp."""
    for strength, values in start.items():
        gradients = {parameter: parameter.grad for parameter in values if parameter.grad is not None}
        if gradients:
            difference = torch._foreach_sub(list(gradients), [values[parameter] for parameter in gradients])
            torch._foreach_add_(list(gradients.values()), difference, alpha=strength)


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
    parts = process_group.micro_batches(batch.size, step_config.num_micro_batches(batch.size, process_group))
    for number, (whole, own) in enumerate(parts, 1):
        rows = slice(start, start := start + len(own))
        process_group.rows.start, process_group.rows.total = own.start - whole.start, len(whole)
        with communication(), accumulates(forward.tail, is_last=number == len(parts)):
            logits = forward.logits(batch.inputs[rows])
            loss = F.cross_entropy(logits, batch.targets[rows], weights, label_smoothing=smoothing, reduction="sum")
            scaled = step_config.scaler.scale(loss / divisor * process_group.size)  # gradients are averaged
            torch.autograd.backward(scaled)
        sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == batch.labels[rows]).sum()])
    return sums


@torch.no_grad()
def evaluate(net: Net, batches: Batches, compute: Compute, prefix: int = 0) -> tuple[float, float, Tensor]:
    """Return the mean loss in nats, the accuracy and the logits `[N, C]` float32 on the device, in the order of the rows.

    An image with a logit that is not finite counts as wrong.
    """
    net.eval()
    process_group, prefix = compute.process_group, max(prefix, batches.start)
    forward = Forward(net, batches, prefix, compute, Tail(net, prefix, compute))
    order = torch.arange(batches.num_images)
    with forward.single_threaded():
        own = [
            logits
            for inputs, _ in batches(order[process_group.shard(len(order))])
            for logits in in_halves(compute, forward.logits, inputs)
        ]
        mine = torch.cat(own) if own else torch.zeros(0, net.num_classes, device=batches.labels.device)
        logits = torch.cat(process_group.all_gather(mine, process_group.shard_sizes(len(order))))
        loss = F.cross_entropy(logits, batches.labels)
        correct = ((logits.argmax(1) == batches.labels) & logits.isfinite().all(1)).float().mean()
    value, accuracy = torch.stack([loss, correct]).tolist()
    return value, accuracy, logits


def in_halves(compute: Compute, run: Callable[[Tensor], Tensor], rows: Tensor) -> Iterator[Tensor]:
    """Yield what `run` returns for some rows, in smaller parts while memory runs out.

    Raises InatFtError when memory runs out for a single row.
    """
    try:
        output = run(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise too_little_memory("one image") from error
    else:
        yield output
        return
    compute.free_memory()  # here, because the error above keeps activations in memory
    for half in rows.tensor_split(2):
        yield from in_halves(compute, run, half)


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
    process_group = forward.compute.process_group
    shards = zip(forward.batches.numbers(), forward.batches(None, process_group.shard), strict=True)
    for count, (numbers, (inputs, _)) in enumerate(shards, 1):
        process_group.rows.start, process_group.rows.total = process_group.shard(len(numbers)).start, len(numbers)
        for norm in norms:  # the mean over all batches; with a momentum of None, each layer waits for the GPU
            norm.momentum = 1 / count
        with communication():
            forward.logits(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
