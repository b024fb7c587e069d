"""The missing rows of the prefix cache, computed by one process or by all processes of torchrun."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inat_ft.cache.array_store import Store
from inat_ft.cache.packed_images import Pixels
from inat_ft.data.batches import Batches, ImageInput, RowSource, StoredRows
from inat_ft.engine.device import Compute, is_out_of_memory, too_little_memory
from inat_ft.progress import ProgressFn

_ROUND = 512
_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}
_Rows = NDArray[Any]


@dataclass
class Extraction:
    """Computes the output of the frozen stages for images.

    prepare: as in Batches. build(count): returns the stages, for `count` images in `dtype`; they are built once.
    """

    pixels: Pixels
    prepare: ImageInput
    build: Callable[[int], nn.Module]
    dtype: torch.dtype
    is_channels_last: bool
    compute: Compute
    _source: RowSource | None = None
    _module: nn.Module | None = None
    _size: int = 0

    def ensure(self, store: Store, progress: ProgressFn) -> None:
        """Compute and store the missing rows. Of several processes, each computes a shard and the main one writes all."""
        process_group, hashes = self.compute.process_group, self.pixels.hashes

        def in_shards(missing: Sequence[int]) -> Iterator[_Rows]:
            yield from self._in_shards(store, process_group.broadcast(missing))

        if process_group.size > 1:
            if not process_group.is_main_process:
                list(self._in_shards(store, process_group.broadcast(None)))
            elif not store.ensure(hashes, in_shards, progress):
                process_group.broadcast([])
            process_group.barrier()
        store.ensure(hashes, self._blocks, progress)

    def _in_shards(self, store: Store, missing: Sequence[int]) -> Iterator[_Rows]:
        """Compute a shard of each round; in the main process, yield all rows in the order of `missing`."""
        process_group = self.compute.process_group
        for start in range(0, len(missing), _ROUND * process_group.size):
            part = missing[start : start + _ROUND * process_group.size]
            own = list(self._blocks(part[process_group.shard(len(part))])) or [np.empty((0, *store.row_shape))]
            rows = torch.from_numpy(np.concatenate(own).astype(store.dtype)).view(torch.uint8)
            gathered = process_group.gather(rows.to(self.compute.device), process_group.shard_sizes(len(part)))
            if gathered:
                yield torch.cat(gathered).cpu().numpy().view(store.dtype)

    def _blocks(self, missing: Sequence[int]) -> Iterator[_Rows]:
        """Yield blocks of rows, in smaller batches after an out-of-memory error; the next batch is computed meanwhile."""
        pixels, waiting, at = self.pixels, None, 0
        if self._module is None:
            self._module, self._size = self.build(len(missing)), _BATCH[self.compute.device.type]
            self._source = StoredRows(*pixels.store.read(pixels.hashes)) if pixels.is_packed() else pixels.files()
        assert self._source is not None
        while at < len(missing):
            try:
                for inputs, _ in Batches(self._source, pixels.labels, self._size, self.prepare)(
                    torch.tensor(missing[at:])
                ):
                    following = _to_host(self._rows(self._module, inputs))
                    at += len(inputs)
                    if waiting:
                        yield waiting()
                    waiting = following
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._size == 1:
                    raise too_little_memory("one image") from error
                self._size //= 2
                self._module = getattr(self._module, "plain", self._module)  # a compiled one pads smaller batches
            self.compute.free_memory()
        if waiting:
            yield waiting()

    def _rows(self, module: nn.Module, inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return as_rows(module(inputs.to(self.dtype)), self.is_channels_last).contiguous()


def as_rows(activation: Tensor, is_channels_last: bool) -> Tensor:
    """Return activations as they are stored: `[B, H, W, C]` if the network computes in channels-last format."""
    return activation.permute(0, 2, 3, 1) if is_channels_last else activation


def _to_host(rows: Tensor) -> Callable[[], _Rows]:
    """Copy rows to the host; on CUDA, the function that is returned waits for the copy."""
    if rows.device.type != "cuda":
        return partial(_to_numpy, rows.cpu())
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch declares no types here
    copied.record(torch.cuda.current_stream(rows.device))
    return lambda: _to_numpy(host, copied)


def _to_numpy(rows: Tensor, copied: torch.cuda.Event | None = None) -> _Rows:
    if copied is not None:
        copied.synchronize()
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
