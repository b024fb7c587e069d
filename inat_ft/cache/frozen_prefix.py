"""The cache of the frozen prefix: the output of the frozen stages, computed once per image and kept on disk.

All runs that start from the same weights share it. An estimate of the arithmetic that it saves and the disk space that it
takes decides whether it is used.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inat_ft.cache.array_store import Make, Store, open_store
from inat_ft.cache.packed_images import Pixels, pixels_key
from inat_ft.cache.prefix_forward import (
    EXACT_ROWS,
    MAX_ERROR,
    Compiled,
    PrefixForward,
    bf16_prefix,
    exact_prefix,
    folded_prefix,
    relative_error,
)
from inat_ft.data.batches import Batches, ImageInput, ResidentRows, RowSource, StoredRows
from inat_ft.engine.device import Compute, has_compiler, is_out_of_memory
from inat_ft.errors import InatFtError
from inat_ft.models.base import Preprocess
from inat_ft.models.net import Net
from inat_ft.models.weights import fingerprint
from inat_ft.progress import Log, ProgressFn, ignore_log
from inat_ft.records import write_text
from inat_ft.threads import num_cores

_MAX_DISK_SHARE = 0.5
_MIN_SAVED = 0.2
_ROUND = 512
_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}
_COMPILE_FLOPS = 3e13
"""FLOPs per core above which compiling pays: it takes 15 to 25 s and saves a third of the time."""
_RESIDENT_BYTES = {"cpu": 2**29, "cuda": 16 * 2**30, "mps": 2**30}


@dataclass(frozen=True)
class FixedView:
    """A fixed augmentation: its name in cache keys, its kind (augment.py), and the draws `[N, 8]` for image hashes."""

    name: str
    augment: str = "none"
    draws: Callable[[Sequence[str]], Tensor] | None = None


IDENTITY = FixedView("plain")


@dataclass(frozen=True)
class Estimate:
    """The disk space in bytes that a cache takes and has, and the share of the arithmetic that it saves (0 to 1)."""

    bytes: int
    free: int
    saved: float

    @property
    def pays(self) -> bool:
        """Whether the cache saves enough and leaves enough space on the disk."""
        return self.saved >= _MIN_SAVED and self.bytes <= _MAX_DISK_SHARE * self.free


@dataclass(frozen=True)
class _Cost:
    """FLOPs of one image before and after a depth, and the shape of its activation there.

    is_channels_last: memory format of the activation; rows are stored in it, because the exact bits of kernels depend on it.
    """

    before: int
    after: int
    row_shape: tuple[int, ...]
    is_channels_last: bool


@dataclass
class PrefixCache:
    """The outputs of the first stages of a network, by image."""

    net: Net
    preprocess: Preprocess
    compute: Compute
    folder: Path
    _costs: dict[tuple[int, int], _Cost] = field(default_factory=dict)

    def estimate(self, depth: int, num_train: int, num_val: int, epochs: int, views: int) -> Estimate:
        """Estimate a cache of the first `depth` stages. A training step costs three times its forward pass."""
        train, val = (self._cost(depth, size) for size in (self.preprocess.image_size, self.preprocess.eval_size))
        steps = epochs * (3 * num_train * train.after + num_val * val.after)
        without = epochs * (num_train * train.before + num_val * val.before) + steps
        once = views * num_train * train.before + num_val * val.before
        itemsize = 2 if self.compute.precision == "bf16" else 4
        size = itemsize * (views * num_train * int(np.prod(train.row_shape)) + num_val * int(np.prod(val.row_shape)))
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        return Estimate(size, shutil.disk_usage(existing).free, 1 - (once + steps) / without)

    def _cost(self, depth: int, size: int) -> _Cost:
        if (depth, size) not in self._costs:
            image = torch.zeros(1, 3, size, size, device=self.compute.device)
            self.net.eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                middle = self.net.forward_stages(image, 0, depth)
                before = counter.get_total_flops()
                self.net.forward_stages(middle, depth, len(self.net.stages))
            after = counter.get_total_flops() - before
            is_last = middle.ndim == 4 and middle.stride()[1] == 1 and middle.stride()[3] == middle.shape[1]
            row_shape = tuple(_row(middle, is_last).shape[1:])
            self._costs[depth, size] = _Cost(before, after, row_shape, is_last)
        return self._costs[depth, size]

    def exact_depth(self, depth: int) -> int:
        """Return how many of the first `depth` stages give an image the same bits at every position in a batch.

        For a few stages the bits depend on how threads split a sum. The result is kept in the cache folder.
        """
        sides = sorted({self.preprocess.image_size, self.preprocess.eval_size})
        key = [self._key(depth), sides, EXACT_ROWS, torch.get_num_threads()]
        return int(self._remembered(key, lambda: min(self._measure_exact_depth(depth, side) for side in sides)))

    def _measure_exact_depth(self, depth: int, side: int) -> int:
        images = torch.rand(EXACT_ROWS, 3, side, side, generator=torch.Generator().manual_seed(0))
        images = images.to(self.compute.device).contiguous(memory_format=torch.channels_last)
        orders = [torch.randperm(EXACT_ROWS, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
        self.net.eval()
        with torch.inference_mode():
            for number in range(depth):
                outputs = self.net.forward_stages(images, number, number + 1)
                shuffled = (self.net.forward_stages(images[order], number, number + 1) for order in orders)
                if not all(torch.equal(one, outputs[order]) for one, order in zip(shuffled, orders, strict=True)):
                    return number
                images = outputs
        return depth

    def _remembered(self, key: object, measure: Callable[[], float]) -> float:
        """Return what was measured for a key, from the cache folder if it is there."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        file = self.folder / "checked" / f"{name}.json"
        try:
            return float(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            measured = measure()
            with suppress(InatFtError):  # if the folder is read-only, the next run measures again
                write_text(file, f"{measured!r}\n")
            return measured

    def prefix_forward(self, depth: int, hashes: Sequence[str], sample: Callable[[], Tensor]) -> PrefixForward:
        """Choose how the first stages are computed.

        sample(): returns inputs `[S, 3, H, W]` from the images of these hashes, on which bfloat16 is compared with float32.
        The relative error is kept in the cache folder.
        """
        key = self._key(depth)
        error = None
        if self.compute.exact:
            chosen = exact_prefix
        elif self.compute.precision == "fp32":
            chosen = folded_prefix
        elif self.compute.forced:
            chosen = bf16_prefix
        else:
            compared = [pixels_key(self.preprocess.image_size, self.preprocess.resizing) | key, sorted(hashes)]
            measured = self._remembered(compared, lambda: relative_error(self.net, depth, sample()))
            error = self.compute.process_group.broadcast(measured)
            chosen = bf16_prefix if error <= MAX_ERROR else folded_prefix
        return replace(chosen(self.net, depth), error=error, key=key)

    def _key(self, depth: int) -> dict[str, Any]:
        stages = list(self.net.stages.items())[:depth]
        state = {f"{name} {key}": tensor for name, stage in stages for key, tensor in stage.state_dict().items()}
        return {
            "weights": fingerprint(state),
            "stages": [name for name, _ in stages],
            "mean": self.preprocess.mean,
            "std": self.preprocess.std,
            "device": self.compute.device.type,
            "torch": torch.__version__.split("+")[0],
        }

    def rows(
        self, prefix: PrefixForward, pixels: Pixels, view: FixedView, progress: ProgressFn, log: Log = ignore_log
    ) -> RowSource:
        """Return the outputs of the first stages for the images; compute and store the missing ones."""
        key = {**pixels.key, **prefix.key, "form": prefix.form, "view": view.name}
        is_bf16 = prefix.dtype == torch.bfloat16
        row_shape = self._cost(prefix.depth, pixels.size).row_shape
        store = open_store(self.folder, "prefix", key, row_shape, "u2" if is_bf16 else "f4")

        def make(missing: Sequence[int]) -> Iterator[NDArray[Any]]:
            return self._compute(self.build(prefix, pixels.size, len(missing), log), prefix, pixels, view, missing)

        if self.compute.process_group.size > 1:
            self._ensure_together(store, pixels.hashes, make, progress)
        store.ensure(pixels.hashes, make, progress)
        stored = StoredRows(*store.read(pixels.hashes), as_bfloat16=is_bf16)
        if len(pixels) * store.row_bytes > _RESIDENT_BYTES[self.compute.device.type]:
            return stored
        return ResidentRows(stored.rows(torch.arange(len(pixels))).to(self.compute.device))

    def _ensure_together(self, store: Store, hashes: Sequence[str], make: Make, progress: ProgressFn) -> None:
        """Compute a shard of the missing rows in each process; the main process writes all of them."""
        process_group = self.compute.process_group

        def in_shards(missing: Sequence[int]) -> Iterator[NDArray[Any]]:
            yield from self._in_shards(make, store, process_group.broadcast(missing))

        if not process_group.is_main_process:
            for _ in self._in_shards(make, store, process_group.broadcast(None)):
                pass
        elif not store.ensure(hashes, in_shards, progress):
            process_group.broadcast([])
        process_group.barrier()

    def _in_shards(self, make: Make, store: Store, missing: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield rows in the order of `missing`; each process computes a shard of `_ROUND` rows per round."""
        process_group = self.compute.process_group
        for start in range(0, len(missing), _ROUND * process_group.size):
            part = missing[start : start + _ROUND * process_group.size]
            own = list(make(part[process_group.shard(len(part))])) or [np.empty((0, *store.row_shape), store.dtype)]
            rows = torch.from_numpy(np.concatenate(own).astype(store.dtype)).view(torch.uint8)
            gathered = process_group.all_gather(rows.to(self.compute.device), process_group.shard_sizes(len(part)))
            yield torch.cat(gathered).cpu().numpy().view(store.dtype)

    def activation(self, depth: int, size: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function from stored rows to the float32 input of the next stage."""
        is_channels_last = self._cost(depth, size).is_channels_last
        return lambda rows, numbers: rows.float().permute(0, 3, 1, 2) if is_channels_last else rows.float()

    def _compute(
        self, module: nn.Module, prefix: PrefixForward, pixels: Pixels, view: FixedView, missing: Sequence[int]
    ) -> Iterator[NDArray[Any]]:
        """Yield blocks of rows, in smaller batches after an out-of-memory error. Images are decoded in the background."""
        draws = view.draws(pixels.hashes).to(self.compute.device) if view.draws else None
        prepare = ImageInput(self.preprocess.mean, self.preprocess.std, view.augment, draws)
        source: RowSource = StoredRows(*pixels.store.read(pixels.hashes)) if pixels.is_packed() else pixels.files()
        is_channels_last = self._cost(prefix.depth, pixels.size).is_channels_last
        size, at = _BATCH[self.compute.device.type], 0
        while at < len(missing):
            try:
                for inputs, _ in Batches(source, pixels.labels, size, prepare)(torch.tensor(missing[at:])):
                    with torch.inference_mode():
                        rows = _row(module(inputs.to(prefix.dtype)), is_channels_last).contiguous().cpu()
                    at += len(rows)
                    yield rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.float().numpy()
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                size //= 2
                if isinstance(module, Compiled):  # it would pad smaller batches
                    module = module.stages
                self.compute.free_memory()

    def build(self, prefix: PrefixForward, size: int, count: int, log: Log) -> nn.Module:
        """Return the module of the first stages for `count` images of a size, compiled if that pays on a CPU."""
        single_cpu = self.compute.device.type == "cpu" and self.compute.process_group.size == 1
        pays = count * self._cost(prefix.depth, size).before >= _COMPILE_FLOPS * num_cores()
        if self.compute.exact or not single_cpu or not pays or not has_compiler():
            return prefix.build()
        log(f"prefix: compiled with torch.compile, which pays for {count:,} images")
        return Compiled(prefix.build(), log)


def _row(activation: Tensor, is_channels_last: bool) -> Tensor:
    """Return activations as they are stored: `[B, H, W, C]` if the network computes in channels-last format."""
    return activation.permute(0, 2, 3, 1) if is_channels_last else activation
