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
from inat_ft.engine.ranks import Ranks
from inat_ft.errors import InatFtError, UsageError
from inat_ft.models.net import Net

OnStep = Callable[[int, int, float | None, float | None], None]
"""Called with (images done, images in all, loss, accuracy) now and then; the last two are None but now and then."""

_REPORT_EVERY = 50
"""Steps between two figures of the progress, on a GPU, which must be waited for."""


@dataclass
class Recipe:
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
    say: Callable[[str], None] = lambda line: None
    parts: int = 1
    """Into how many parts a batch is split, one after the other; grows when memory runs out."""

    def split_further(self, rows: int) -> None:
        """Twice as many parts. Raises InatFtError when a part has two images already, the fewest that BatchNorm takes."""
        if self.parts >= rows // 2:
            raise InatFtError("out of memory, with two images at a time", "try a smaller --image-size or backbone")
        self.parts = min(2 * self.parts, rows // 2)
        self.say(f"memory: a batch of {rows} images is computed in {self.parts} parts, since it does not fit at once")

    def num_parts(self, size: int, ranks: Ranks) -> int:
        """Return into how many micro-batches a batch is split: each has two images, and one for each process, at least."""
        return max(1, min(self.parts, size // max(2, ranks.size)))

    def learned(self, net: Net, prefix: int) -> Callable[[Tensor], Tensor] | None:
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
class Pass:
    """Some images on their way through what the frozen prefix makes of them, then through what learns."""

    net: Net
    batches: Batches
    prefix: int
    compute: Compute
    cores: int = field(default_factory=torch.get_num_threads)
    learned: Callable[[Tensor], Tensor] | None = None
    """The stages after the prefix, compiled; None runs them as they are."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` float32. The head always computes in float32: it costs nothing and decides the answer."""
        inputs = self._frozen(inputs)
        with self.compute.autocast():
            run = self.learned or (lambda x: self.net.run(x, self.prefix, len(self.net.stages)))
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
                return self.net.run(inputs, self.batches.start, self.prefix)

    def alone(self) -> AbstractContextManager[None]:
        """One thread when only the head learns on a CPU: more gain little, and lose much on a busy machine."""
        only_head = self.prefix == len(self.net.stages) and self.compute.device.type == "cpu"
        return threads(1) if only_head else nullcontext()


def learn(
    on: Pass, recipe: Recipe, optimizer: Optimizer, order: Tensor, set_rate: Callable[[int, int], None], after: OnStep
) -> tuple[float, float]:
    """One pass of learning. Returns the mean loss in nats per image and the share that was right.

    set_rate(step, steps): called before each step, counted from 0; after: called after each step. Loss and accuracy are
    summed on the device; a GPU is waited for now and then, for the progress, and at the end.
    """
    on.net.train()
    total = torch.zeros(2, device=on.compute.device)
    ranks, every = on.compute.ranks, 1 if on.compute.device.type == "cpu" else _REPORT_EVERY
    steps = len(on.batches.numbers(order))
    done = 0
    with on.alone():
        for index, (size, inputs, labels) in enumerate(own_batches(on, recipe, order)):
            set_rate(index, steps)
            total += step(on, recipe, optimizer, inputs, labels, size)
            done += size
            loss, accuracy = (total * ranks.size / done).tolist() if index % every == 0 else (None, None)
            after(done, len(order), loss, accuracy)
    loss, accuracy = (ranks.sum(total) / done).tolist()
    if not math.isfinite(loss):
        raise InatFtError(f"the loss is {loss}: training has diverged", "try a lower learning rate: --lr")
    return loss, accuracy


def own_batches(on: Pass, recipe: Recipe, order: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield, for each batch of the whole training, its size and what `step` takes of it in this process.

    Images are blended with others of the whole batch, so that every process needs all of it.
    """
    ranks = on.compute.ranks

    def wanted(size: int) -> slice | Tensor:
        return slice(size) if recipe.mix or ranks.size == 1 else ranks.own_rows(size, recipe.num_parts(size, ranks))

    sizes = map(len, on.batches.numbers(order))
    for size, (inputs, labels) in zip(sizes, on.batches(order, wanted), strict=True):
        yield size, inputs, labels


def step(on: Pass, recipe: Recipe, optimizer: Optimizer, inputs: Tensor, labels: Tensor, size: int) -> Tensor:
    """Take one step on this process's rows of a batch of `size` images; on all rows where they are to be blended.

    Returns the rows' summed loss and number of right answers, `[2]` on the device.
    """
    ranks, targets = on.compute.ranks, labels
    if recipe.mix:
        inputs, targets = recipe.mix(inputs, labels)
        if ranks.size > 1:
            own = ranks.own_rows(size, recipe.num_parts(size, ranks)).to(labels.device)
            inputs, labels, targets = inputs[own], labels[own], targets[own]
    while True:
        try:
            sums = _gradients(on, recipe, inputs, labels, targets, size)
            break
        except (RuntimeError, MemoryError) as error:
            if ranks.size > 1 or not is_out_of_memory(error):
                raise
        optimizer.zero_grad(set_to_none=True)
        recipe.split_further(len(labels))
        on.compute.free_memory()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ranks.sum_gradients(parameters)
    for parameter, (start, strength) in recipe.start.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=strength)
    if recipe.config.clip_norm:
        nn.utils.clip_grad_norm_(parameters, recipe.config.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums


def _gradients(on: Pass, recipe: Recipe, inputs: Tensor, labels: Tensor, targets: Tensor, size: int) -> Tensor:
    """Add up the gradients of the mean loss over the batch, micro-batch by micro-batch.

    The mean is that of `nn.CrossEntropyLoss`: with class weights and labels that are not blended, the sum is divided by
    the sum of the labels' weights over the whole batch.
    """
    ranks, sums = on.compute.ranks, torch.zeros(2, device=labels.device)
    divisor: Tensor | int = size
    if recipe.class_weights is not None and targets.ndim == 1:
        divisor = ranks.sum(recipe.class_weights[labels].sum())
    start = 0
    for whole, own in ranks.micro_batches(size, recipe.num_parts(size, ranks)):
        rows = slice(start, start := start + len(own))
        x, y, target = inputs[rows], labels[rows], targets[rows]
        ranks.rows.start, ranks.rows.total = own.start - whole.start, len(whole)
        logits = on.logits(x)
        smoothing = recipe.config.label_smoothing
        loss = F.cross_entropy(logits, target, recipe.class_weights, label_smoothing=smoothing, reduction="sum")
        torch.autograd.backward(loss / divisor)
        sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == y).sum()])
    return sums


@torch.no_grad()
def evaluate(net: Net, batches: Batches, compute: Compute, prefix: int = 0) -> tuple[float, float, Tensor]:
    """Return the mean loss in nats, the accuracy, and the logits `[N, C]` float32 on the device, in the rows' order.

    An image whose logits are not finite is not right.
    """
    net.eval()
    on, ranks = Pass(net, batches, max(prefix, batches.start), compute), compute.ranks
    order = torch.arange(batches.num_images)
    with on.alone():
        own = [logits for inputs, _ in batches(order[ranks.share(len(order))]) for logits in _in_parts(on, inputs)]
        mine = torch.cat(own) if own else torch.zeros(0, net.num_classes, device=batches.labels.device)
        logits = torch.cat(ranks.gather(mine, ranks.shares(len(order))))
        loss = F.cross_entropy(logits, batches.labels)
        right = ((logits.argmax(1) == batches.labels) & logits.isfinite().all(1)).float().mean()
    value, accuracy = torch.stack([loss, right]).tolist()
    return value, accuracy, logits


def _in_parts(on: Pass, inputs: Tensor) -> Iterator[Tensor]:
    """The logits of a batch, in halves of halves when memory runs out."""
    try:
        yield on.logits(inputs)
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(inputs) == 1:
            raise
    on.compute.free_memory()
    for half in inputs.tensor_split(2):
        yield from _in_parts(on, half)


@torch.no_grad()
def refresh_norms(on: Pass) -> None:
    """Measure the statistics of the BatchNorm layers that learn anew, over one pass of the training images."""
    on.net.train()
    norms = [norm for norm in on.net.batch_norms() if norm.training]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    ranks = on.compute.ranks
    for numbers, (inputs, _) in zip(on.batches.numbers(), on.batches(None, ranks.share), strict=True):
        ranks.rows.start, ranks.rows.total = ranks.share(len(numbers)).start, len(numbers)
        on.logits(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
