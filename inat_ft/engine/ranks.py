"""The processes of one training: one alone, or several that torchrun started and that share the work.

Every process holds the whole network and does the same with a share of each batch; gradients, BatchNorm statistics and
logits are put together, so that the result is that of one process up to the order of summation. Gradients are summed
by hand, in one piece after the backward pass, rather than by DistributedDataParallel, which would have to be set up anew
whenever something else begins to learn.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inat_ft.errors import InatFtError

_PATIENCE = timedelta(minutes=60)


@dataclass
class Rows:
    """Where a process's next rows begin in the whole batch, and how many rows that has; 0 where nobody shares it."""

    start: int = 0
    total: int = 0


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    rows: Rows = field(default_factory=Rows, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The process's part of `count` rows; parts differ by one row at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def shares(self, count: int) -> list[int]:
        """How many rows of `count` each process has."""
        ends = [rank * count // self.size for rank in range(self.size + 1)]
        return [end - start for start, end in pairwise(ends)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            with _together():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size > 1 and gradients:
            flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, whole in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(whole.view_as(gradient))

    def gather(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Each process's rows; counts: how many each of them brings. All hold rows of one shape and dtype."""
        if self.size == 1:
            return [rows]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in counts]
        with _together():
            dist.all_gather(everyone, padded)
        return [theirs[:count] for theirs, count in zip(everyone, counts, strict=True)]

    def agree(self, value: Any) -> Any:
        """The first process's value, on all of them. It must be plain: it travels as a pickle between one's own."""
        if self.size == 1:
            return value
        values = [value]
        with _together():
            dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Until all processes have come here."""
        self.agree(None)


ALONE = Ranks()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise InatFtError(
            "another process of this training has ended, or cannot be reached",
            "its own message says why; if there is none, it was killed, as for want of memory",
        ) from error


def local_rank() -> int | None:
    """Number of this process on its machine when torchrun started it, otherwise None."""
    return int(os.environ["LOCAL_RANK"]) if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ) else None


def join(device: torch.device) -> Ranks:
    """Meet the other processes that torchrun started, if it did."""
    if local_rank() is None:
        return ALONE
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _together(), _stdout_to_stderr():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Some versions of gloo print who is connected, where only results belong."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(real, 1)
        os.close(real)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows of all processes. torch's own SyncBatchNorm has no form for the CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """As BatchNorm on `[B, C, ...]` with the rows of every process in the batch."""
        if not self.training:
            return super().forward(inputs)
        rows = inputs.float()
        others = [dim for dim in range(rows.ndim) if dim != 1]
        shape = [-1, *[1] * (rows.ndim - 2)]
        own = rows.sum(others)
        count = own.new_full((1,), rows.numel() / rows.shape[1])
        both: Tensor = _Total.apply(torch.cat([own, count]))
        sums, count = both[:-1], both[-1]
        mean = sums / count
        centred = rows - mean.view(shape)
        variance = _Total.apply((centred * centred).sum(others)) / count
        self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        shifted: Tensor = scaled * self.weight.view(shape) + self.bias.view(shape)
        return shifted.to(inputs.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Total(torch.autograd.Function):
    """The sum over all processes, through which gradients flow: each part's is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        with _together():
            dist.all_reduce(total := tensor.clone())
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        with _together():
            dist.all_reduce(total := gradient.clone())
        return total


class _SharedDropout(nn.Module):
    """Mixed into a layer that multiplies its input by random numbers: it draws for a share what it would for the batch.

    All processes draw the same numbers for the whole batch, and each uses those of its own rows.
    """

    rows: Rows
    drops_rows: bool
    """Whether it drops whole rows, one number each."""

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer on `[B, ...]`."""
        if not self.training or not self.rows.total:
            dropped: Tensor = super().forward(inputs)
            return dropped
        each = [1] * (inputs.ndim - 1) if self.drops_rows else inputs.shape[1:]
        whole = inputs.new_ones(self.rows.total, *each)
        if inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            whole = whole.contiguous(memory_format=torch.channels_last)  # numbers are drawn in the order of memory
        drawn: Tensor = super().forward(whole)
        return inputs * drawn[self.rows.start : self.rows.start + len(inputs)]


def share_layers(net: nn.Module, rows: Rows) -> list[str]:
    """Make the layers that look at a whole batch, BatchNorm and dropout, look at that of all processes.

    Returns the names of the kinds of normalisation for which that cannot be done: theirs are the rows of each process.
    """
    from torchvision.ops import StochasticDepth

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    drops = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    left = set()
    for module in net.modules():
        kind = type(module)
        drops_rows = kind is StochasticDepth or kind.__name__ == "DropPath"  # the latter is timm's
        if kind in norms and module.affine and module.track_running_stats:
            module.__class__ = type(f"Shared{kind.__name__}", (_SharedBatchNorm, kind), {})
        elif isinstance(module, norms):
            left.add(kind.__name__)
        elif kind in drops or drops_rows:
            more = {"rows": rows, "drops_rows": drops_rows}
            module.__class__ = type(f"Shared{kind.__name__}", (_SharedDropout, kind), more)
    return sorted(left)
