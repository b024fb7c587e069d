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
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inat_ft.errors import InatFtError

_PATIENCE = timedelta(minutes=60)


@dataclass
class BatchSlice:
    """Where a process's next rows begin in the whole batch, and how many rows that has; 0 where nobody shares it."""

    start: int = 0
    total: int = 0


@dataclass(frozen=True)
class ProcessGroup:
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    rows: BatchSlice = field(default_factory=BatchSlice, compare=False)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """The process's part of `count` rows; parts differ by one row at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def shard_sizes(self, count: int) -> list[int]:
        """How many rows of `count` each process has."""
        ends = [rank * count // self.size for rank in range(self.size + 1)]
        return [end - start for start, end in pairwise(ends)]

    def micro_batches(self, count: int, parts: int) -> list[tuple[range, range]]:
        """Split `count` rows into parts, and return the rows of each and those of them that are this process's own."""
        sizes = [count // parts + (part < count % parts) for part in range(parts)]
        whole = [range(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return [(rows, rows[self.shard(len(rows))]) for rows in whole]

    def local_rows(self, count: int, parts: int) -> Tensor:
        """Return the numbers of this process's own rows in a batch of so many that is split into parts, `[M]` int64."""
        return torch.tensor([row for _, own in self.micro_batches(count, parts) for row in own])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            with _is_distributed():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size > 1 and gradients:
            flat = self.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, whole in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(whole.view_as(gradient))

    def all_gather(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Each process's rows; counts: how many each of them brings. All hold rows of one shape and dtype."""
        if self.size == 1:
            return [rows]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in counts]
        with _is_distributed():
            dist.all_gather(everyone, padded)
        return [theirs[:count] for theirs, count in zip(everyone, counts, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on all of them. It must be plain: it travels as a pickle between one's own."""
        if self.size == 1:
            return value
        values = [value]
        with _is_distributed():
            dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Until all processes have come here."""
        self.broadcast(None)


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def _is_distributed() -> Iterator[None]:
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


def init_distributed(device: torch.device) -> ProcessGroup:
    """Meet the other processes that torchrun started, if it did."""
    if local_rank() is None:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _is_distributed(), _stdout_to_stderr():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    return ProcessGroup(dist.get_rank(), dist.get_world_size())


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


class _AllReduceSum(torch.autograd.Function):
    """The sum over all processes, through which gradients flow: each part's is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        with _is_distributed():
            dist.all_reduce(total := tensor.clone())
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        with _is_distributed():
            dist.all_reduce(total := gradient.clone())
        return total


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows of all processes. torch's own SyncBatchNorm does not run on a CPU."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Take over parameters, statistics and settings."""
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.training = norm.training

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, inputs: Tensor) -> Tensor:
        """As BatchNorm on `[B, C, ...]` with the rows of every process in the batch."""
        if not self.training:
            return super().forward(inputs)
        rows = inputs.float()
        others = [dim for dim in range(rows.ndim) if dim != 1]
        shape = [-1, *[1] * (rows.ndim - 2)]
        own = rows.sum(others)
        count = own.new_full((1,), rows.numel() / rows.shape[1])
        both: Tensor = _AllReduceSum.apply(torch.cat([own, count]))
        sums, count = both[:-1], both[-1]
        mean = sums / count
        centred = rows - mean.view(shape)
        variance = _AllReduceSum.apply((centred * centred).sum(others)) / count
        self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        shifted: Tensor = scaled * self.weight.view(shape) + self.bias.view(shape)
        return shifted.to(inputs.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        shard = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, shard)
        self.running_var.lerp_(variance, shard)


class _SyncDropout(nn.Module):
    """A layer that multiplies its input by random numbers: it draws for a share what it would for the whole batch.

    All processes draw the same numbers for the whole batch, and each uses those of its own rows.
    """

    def __init__(self, layer: nn.Module, rows: BatchSlice, drops_rows: bool) -> None:
        """Wrap a layer; drops_rows: whether it drops whole rows, with one number each."""
        super().__init__()
        self.layer, self.rows, self.drops_rows = layer, rows, drops_rows
        self.training = layer.training

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer on `[B, ...]`."""
        if not self.training or not self.rows.total:
            dropped: Tensor = self.layer(inputs)
            return dropped
        each = [1] * (inputs.ndim - 1) if self.drops_rows else inputs.shape[1:]
        whole = inputs.new_ones(self.rows.total, *each)
        if inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            whole = whole.contiguous(memory_format=torch.channels_last)  # numbers are drawn in the order of memory
        drawn: Tensor = self.layer(whole)
        return inputs * drawn[self.rows.start : self.rows.start + len(inputs)]


def convert_sync_layers(net: nn.Module, rows: BatchSlice) -> list[str]:
    """Replace the layers that look at a whole batch, BatchNorm and dropout, by ones that look at that of all processes.

    Returns the names of the kinds of normalization for which that is impossible: theirs are the rows of each process.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    left = set()
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if module not in replacements:
            shared = _shared(module, rows)
            if shared is None:
                left |= {type(module).__name__} if isinstance(module, nn.modules.batchnorm._BatchNorm) else set()
                continue
            replacements[module] = shared
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, replacements[module])
    return sorted(left)


def _shared(module: nn.Module, rows: BatchSlice) -> nn.Module | None:
    """Return the layer that takes the place of a module, if there is one."""
    from torchvision.ops import StochasticDepth

    kind = type(module)
    drops_rows = kind is StochasticDepth or kind.__name__ == "DropPath"  # the latter is timm's
    if drops_rows or kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
        return _SyncDropout(module, rows, drops_rows)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if isinstance(module, norms) and kind in norms and module.affine and module.track_running_stats:
        return _SyncBatchNorm(module)
    return None
