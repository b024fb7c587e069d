"""The cache of the frozen prefix: the output of the frozen stages, computed once per image and kept on disk.

All runs that start from the same weights share it. An estimate of the arithmetic that it saves and the disk space that it
takes decides whether it is used.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from inat_ft.cache.array_store import file_name, open_store
from inat_ft.cache.extraction import Extraction, as_rows
from inat_ft.cache.packed_images import Pixels, pixels_key
from inat_ft.cache.prefix_forward import (
    EXACT_ROWS,
    MAX_ERROR,
    Compiled,
    PrefixForward,
    exact_prefix,
    folded_prefix,
    reduced_prefix,
    relative_error,
)
from inat_ft.data.batches import ImageInput, StoredRows, to_device
from inat_ft.engine.device import Compute, has_compiler, is_out_of_memory
from inat_ft.errors import InatFtError
from inat_ft.models.base import Preprocess
from inat_ft.models.net import Net
from inat_ft.models.weights import fingerprint
from inat_ft.paths import free_space
from inat_ft.progress import Log, ProgressFn, ignore_log
from inat_ft.records import write_text
from inat_ft.registry import FEATURES, get
from inat_ft.threads import num_cores

_MAX_DISK_SHARE = 0.5
_MIN_SAVED = 0.2
_COMPILE_FLOPS = 3e13
"""FLOPs per core above which compiling pays: it takes 15 to 25 s and saves a third of the time."""
_DISK_BYTES_PER_S = 5e8
_FLOPS_PER_S = {"cpu": 5e10, "mps": 2e12, "cuda": 5e11}
"""Of a CPU core, an Apple GPU, and a multiprocessor of a GPU since Ampere; earlier ones have a third."""
_RESIDENT_BYTES = {"cpu": 2**30, "mps": 2**31}
_RESIDENT_SHARE = 0.4
_COPY_BYTES = 2**26
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
T = TypeVar("T")
_NUMPY_DTYPES = {torch.float16: "f2", torch.bfloat16: "u2", torch.float32: "f4"}


@dataclass(frozen=True)
class FixedView:
    """A fixed augmentation: its name in cache keys, its kind (augment.py), and the draws `[N, 8]` for image hashes."""

    name: str
    augment: str = "none"
    draws: Callable[[Sequence[str]], Tensor] | None = None


IDENTITY = FixedView("plain")


@dataclass(frozen=True)
class Estimate:
    """The disk space in bytes that a cache takes and has, and the share of the arithmetic or time that it saves (0 to 1)."""

    bytes: int
    free: int
    saved: float
    unit: str

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
    frozen: dict[Any, Any] = field(default_factory=dict)
    """The frozen prefixes of runs that share this cache."""
    _costs: dict[tuple[int, int], _Cost] = field(default_factory=dict)

    def estimate(self, depth: int, num_train: int, num_val: int, epochs: int, views: int) -> Estimate:
        """Estimate a cache of the first `depth` stages. A training step costs three times its forward pass.

        Rows that do not fit on the device are written and read once per epoch, at the rate of a disk.
        """
        train, val = (self._cost(depth, size) for size in (self.preprocess.image_size, self.preprocess.eval_size))
        steps = epochs * (3 * num_train * train.after + num_val * val.after)
        without = epochs * (num_train * train.before + num_val * val.before) + steps
        cached = views * num_train * train.before + num_val * val.before + steps
        is_auto_gpu = self.compute.device.type == "cuda" and not self.compute.forced
        may_reduce = self.compute.precision != "fp32" or is_auto_gpu
        row_bytes = [(2 if may_reduce else 4) * int(np.prod(cost.row_shape)) for cost in (train, val)]
        size = views * num_train * row_bytes[0] + num_val * row_bytes[1]
        is_resident = size <= self.resident_budget()
        if not is_resident:
            moved = size + epochs * (num_train * row_bytes[0] + num_val * row_bytes[1])
            cached += int(moved / _DISK_BYTES_PER_S * _flops_per_s(self.compute.device))
        unit = "arithmetic" if is_resident else "estimated time"
        return Estimate(size, free_space(self.folder), 1 - cached / without, unit)

    def _cost(self, depth: int, size: int) -> _Cost:
        if (depth, size) not in self._costs:
            shapes = {name: list(tensor.shape) for name, tensor in self.net.state_dict().items()}
            device, version = self.compute.device.type, torch.__version__
            key = [self.net.name, repr(self.net), shapes, depth, size, device, version]
            self._costs[depth, size] = self._remembered(key, partial(self._measure_cost, depth, size), _as_cost)
        return self._costs[depth, size]

    def _measure_cost(self, depth: int, size: int) -> tuple[int, int, list[int], bool]:
        from torch.utils.flop_counter import FlopCounterMode  # imports triton

        image = torch.zeros(1, 3, size, size, device=self.compute.device)
        self.net.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            middle = self.net.forward_stages(image, 0, depth)
            before = counter.get_total_flops()
            self.net.forward_stages(middle, depth, len(self.net.stages))
        after = counter.get_total_flops() - before
        is_last = middle.ndim == 4 and middle.stride()[1] == 1 and middle.stride()[3] == middle.shape[1]
        return before, after, list(as_rows(middle, is_last).shape[1:]), is_last

    def exact_depth(self, depth: int) -> int:
        """Return how many of the first `depth` stages give an image the same bits at every position in a batch.

        For a few stages the bits depend on how threads split a sum. The result is kept in the cache folder.
        """
        sides = sorted({self.preprocess.image_size, self.preprocess.eval_size})
        key = [self._key(depth), sides, EXACT_ROWS, torch.get_num_threads()]
        return self._remembered(key, lambda: min(self._measure_exact_depth(depth, side) for side in sides), int)

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

    def _remembered(self, key: object, measure: Callable[[], Any], read: Callable[[Any], T]) -> T:
        """Return what was measured for a key, from the cache folder if it is there and `read` accepts it."""
        file = self.folder / "checked" / f"{file_name(key)}.json"
        try:
            return read(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            measured = measure()
            with suppress(InatFtError):  # if the folder is read-only, the next run measures again
                write_text(file, f"{json.dumps(measured)}\n")
            return read(measured)

    def prefix_forward(self, depth: int, hashes: Sequence[str], sample: Callable[[], Tensor]) -> PrefixForward:
        """Choose how the first stages are computed.

        sample(): returns inputs `[S, 3, H, W]` from the images of these hashes, on which reduced precision is compared with
        float32: float16 on CUDA, then bfloat16 if the device has it. The relative errors are kept in the cache folder.
        """
        compute, key, errors = self.compute, self._key(depth), {}
        if compute.exact:
            return replace(exact_prefix(self.net, depth), key=key)
        if compute.forced and compute.precision != "fp32":
            return replace(reduced_prefix(self.net, depth, _DTYPES[compute.precision]), key=key)
        names = ["bf16"] if compute.precision == "bf16" else []
        names = ["fp16", *names] if compute.device.type == "cuda" else names
        sample = cache(sample)
        for name in names if hashes and not compute.forced else ():
            compared = [pixels_key(self.preprocess.image_size, self.preprocess.resizing) | key, name, sorted(hashes)]
            error = partial(relative_error, self.net, depth, _DTYPES[name], sample)
            errors[name] = float(compute.process_group.broadcast(self._remembered(compared, error, float)))
            if errors[name] <= MAX_ERROR:
                return replace(reduced_prefix(self.net, depth, _DTYPES[name]), errors=errors, key=key)
        return replace(folded_prefix(self.net, depth), errors=errors, key=key)

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
    ) -> StoredRows:
        """Return the outputs of the first stages for the images; compute and store the missing ones."""
        cost = self._cost(prefix.depth, pixels.size)
        key = {**pixels.key, **prefix.key, "form": prefix.form, "view": view.name}
        store = open_store(self.folder, "prefix", key, cost.row_shape, _NUMPY_DTYPES[prefix.dtype])
        draws = to_device(view.draws(pixels.hashes), self.compute.device) if view.draws else None
        prepare = ImageInput(self.preprocess.mean, self.preprocess.std, view.augment, draws)
        build = partial(self.build, prefix, pixels.size, log)
        Extraction(pixels, prepare, build, prefix.dtype, cost.is_channels_last, self.compute).ensure(store, progress)
        return StoredRows(*store.read(pixels.hashes), as_bfloat16=prefix.dtype == torch.bfloat16)

    def resident_budget(self) -> int:
        """Return how many bytes of rows may be kept on the device."""
        device = self.compute.device
        if device.type != "cuda":
            return _RESIDENT_BYTES[device.type]
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_RESIDENT_SHARE * (torch.cuda.mem_get_info(device)[0] + unused))

    def resident(self, sources: Sequence[StoredRows], budget: int) -> Tensor | None:
        """Copy rows to the device, one source after the other; return None if they exceed the budget or its memory."""
        device, pin = self.compute.device, self.compute.device.type == "cuda"
        if sum(source.num_bytes for source in sources) > budget:
            return None
        first = sources[0].rows(torch.zeros(1, dtype=torch.int64))
        chunk = max(1, _COPY_BYTES // first.nbytes)
        parts = [(source, part) for source in sources for part in torch.split(torch.arange(len(source)), chunk)]
        try:
            data = torch.empty(sum(map(len, sources)), *first.shape[1:], dtype=first.dtype, device=device)
            for place, (source, part) in zip(torch.split(data, [len(part) for _, part in parts]), parts, strict=True):
                place.copy_(source.rows(part, pin), non_blocking=pin)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.compute.free_memory()
            return None
        return data

    def activation(self, depth: int, size: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function from stored rows to the float32 input of the next stage."""
        is_channels_last = self._cost(depth, size).is_channels_last
        return lambda rows, numbers: rows.float().permute(0, 3, 1, 2) if is_channels_last else rows.float()

    def build(self, prefix: PrefixForward, size: int, log: Log, count: int) -> nn.Module:
        """Return the module of the first stages for `count` images of a size, compiled if that pays on a CPU."""
        module, flops = prefix.build(), count * self._cost(prefix.depth, size).before
        if self.compute.exact or self.compute.device.type != "cpu" or self.compute.process_group.size > 1:
            return module
        if flops >= _COMPILE_FLOPS * num_cores() and has_compiler():
            log(f"prefix: compiled with torch.compile, which pays off for {count:,} images")
            module = Compiled(module, log)
        faster: nn.Module = get(FEATURES, "frozen-forward").load()(self.net, prefix, module, flops, log)
        return faster


def _as_cost(measured: Any) -> _Cost:
    """Return the cost from JSON. Raises TypeError or ValueError for a damaged file."""
    before, after, row_shape, is_last = measured
    return _Cost(int(before), int(after), tuple(map(int, row_shape)), bool(is_last))


def _flops_per_s(device: torch.device) -> float:
    """Return a rough estimate of the speed of a device."""
    rate = _FLOPS_PER_S[device.type]
    if device.type != "cuda":
        return rate * num_cores() if device.type == "cpu" else rate
    properties = torch.cuda.get_device_properties(device)
    return rate * properties.multi_processor_count / (1 if properties.major >= 8 else 3)
