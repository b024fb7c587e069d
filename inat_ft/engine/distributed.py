"""The processes of a distributed training, as started by torchrun.

Every process holds the whole network and computes a shard of each batch. Gradients, BatchNorm statistics and logits are
reduced over all processes, so the result equals that of one process up to the order of summation.
"""

import atexit
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from inat_ft.errors import InatFtError
from inat_ft.models.dropout import Dropout

_TIMEOUT = timedelta(minutes=60)
_CONNECTION = re.compile("gloo|nccl|connection|socket", re.IGNORECASE)
"""What a RuntimeError contains if another process is gone."""


@dataclass
class BatchSlice:
    """The first row of this process in the current batch, and the size of the whole batch; 0 if it is not shared."""

    start: int = 0
    total: int = 0


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process and the number of processes."""

    rank: int = 0
    size: int = 1
    rows: BatchSlice = field(default_factory=BatchSlice, compare=False)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Return the rows of this process among `count` rows. Shards differ in size by one row at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def shard_sizes(self, count: int) -> list[int]:
        """Return the number of rows of each process."""
        return [end - start for start, end in pairwise(rank * count // self.size for rank in range(self.size + 1))]

    def micro_batches(self, count: int, parts: int) -> list[tuple[range, range]]:
        """Split `count` rows into parts; return the rows of each part, and those of them that are in this shard."""
        sizes = [count // parts + (part < count % parts) for part in range(parts)]
        whole = [range(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return [(rows, rows[self.shard(len(rows))]) for rows in whole]

    def local_rows(self, count: int, parts: int) -> Tensor:
        """Return the rows of this process in a batch of `count` rows that is split into parts, `[M]` int64."""
        return torch.tensor([row for _, own in self.micro_batches(count, parts) for row in own])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.size > 1:
            with communication():
                dist.all_reduce(tensor)
        return tensor

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward pass averages the gradients over all processes."""
        if self.size == 1:
            return module
        options = inspect.signature(DistributedDataParallel).parameters
        # newer versions of torch warn about the older name
        name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
        settings: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module, **settings)

    def all_gather(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Return the rows of each process, all of one shape and dtype. counts: number of rows of each process."""
        if self.size == 1:
            return [rows]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        with communication():
            dist.all_gather(gathered, padded)
        return [theirs[:count] for theirs, count in zip(gathered, counts, strict=True)]

    def gather(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Return what `all_gather` does in the main process, and nothing in the others."""
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts] if self.is_main_process else None
        with communication():
            dist.gather(padded, gathered)
        return [theirs[:count] for theirs, count in zip(gathered or [], counts, strict=bool(gathered))]

    def broadcast(self, value: Any) -> Any:
        """Return the value of the main process, which must be picklable, on all processes."""
        if self.size == 1:
            return value
        values = [value]
        with communication():
            dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        self.broadcast(None)


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def communication() -> Iterator[None]:
    """Replace the error of a process that lost contact with another one by an InatFtError."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or _CONNECTION.search(str(error))):
            raise
        raise InatFtError(
            "another process of this training stopped or cannot be reached",
            "read its own error message; if there is none, it was killed, for example because memory ran out",
        ) from error


def accumulates(module: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return the context of a micro-batch: gradients are reduced over the processes in the last one only."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) and not is_last else nullcontext()


def local_rank() -> int | None:
    """Return the rank of this process on its machine if torchrun started it, otherwise None."""
    return int(os.environ["LOCAL_RANK"]) if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ) else None


def init_distributed(device: torch.device) -> ProcessGroup:
    """Join the process group of torchrun, with NCCL on CUDA and gloo elsewhere."""
    if local_rank() is None:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with communication(), _stdout_to_stderr():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        atexit.register(_leave)
    return ProcessGroup(dist.get_rank(), dist.get_world_size())


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect file descriptor 1: some versions of gloo print to stdout, which is for results only."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes. The gradient of each term is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return ProcessGroup(size=dist.get_world_size()).all_reduce(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ProcessGroup(size=dist.get_world_size()).all_reduce(gradient.clone())


class _CpuSyncBatchNorm(_BatchNorm):
    """BatchNorm over the batch of all processes. `nn.SyncBatchNorm` does not support CPUs."""

    def __init__(self, norm: _BatchNorm) -> None:
        """Take over the parameters, statistics and settings of a layer."""
        super().__init__(norm.num_features)
        self.__dict__.update(norm.__dict__)

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Accept any number of dimensions."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize `[B, C, ...]` with the statistics of the whole batch."""
        if not self.training:
            return super().forward(inputs)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        rows = inputs.float()
        others = [dim for dim in range(rows.ndim) if dim != 1]
        shape = [-1, *[1] * (rows.ndim - 2)]
        local = rows.new_full((1,), rows.numel() / rows.shape[1])
        sums, count = _AllReduceSum.apply(torch.cat([rows.sum(others), local])).split([self.num_features, 1])
        mean = sums / count
        centred = rows - mean.view(shape)
        variance = _AllReduceSum.apply((centred * centred).sum(others)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum or 0.0)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        shifted: Tensor = scaled * self.weight.view(shape) + self.bias.view(shape)
        return shifted.to(inputs.dtype)


class _SyncDropout(nn.Module):
    """A dropout layer that gives each row the same random numbers as a single process would.

    Every process draws numbers for the whole batch and uses those of its own rows.
    """

    def __init__(self, layer: nn.Module, rows: BatchSlice, drops_rows: bool) -> None:
        """Wrap a layer. drops_rows: whether it drops whole rows, as stochastic depth does."""
        super().__init__()
        self.layer, self.rows, self.drops_rows = layer, rows, drops_rows
        self.training = layer.training

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to `[B, ...]`."""
        if not self.training or not self.rows.total:
            dropped: Tensor = self.layer(inputs)
            return dropped
        each = [1] * (inputs.ndim - 1) if self.drops_rows else inputs.shape[1:]
        ones = inputs.new_ones(self.rows.total, *each)
        if inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)  # random numbers are drawn in memory order
        factors: Tensor = self.layer(ones)
        return inputs * factors[self.rows.start : self.rows.start + len(inputs)]


def convert_sync_layers(net: nn.Module, rows: BatchSlice) -> list[str]:
    """Replace BatchNorm and dropout layers by ones that work on the batch of all processes.

    Returns the class names of the BatchNorm layers that cannot be replaced.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    kept = set()
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if module not in replacements:
            synced = _sync_layer(module, rows)
            if synced is None:
                kept |= {type(module).__name__} if isinstance(module, _BatchNorm) else set()
                continue
            replacements[module] = synced
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, replacements[module])
    return sorted(kept)


def _sync_layer(module: nn.Module, rows: BatchSlice) -> nn.Module | None:
    """Return the replacement of a layer, or None if it has none."""
    from torchvision.ops import StochasticDepth

    kind = type(module)
    drops_rows = kind is StochasticDepth or kind.__name__ == "DropPath"  # the latter is timm's
    if drops_rows or kind in (Dropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
        return _SyncDropout(module, rows, drops_rows)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if isinstance(module, norms) and kind in norms and module.affine and module.track_running_stats:
        to_sync: Any = nn.SyncBatchNorm.convert_sync_batchnorm if module.weight.is_cuda else _CpuSyncBatchNorm
        synced: nn.Module = to_sync(module)
        return synced
    return None
