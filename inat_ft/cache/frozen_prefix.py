"""The frozen prefix: computed once per image, kept on disk, shared by all runs that start from the same weights.

Whether it pays is estimated from what a step costs with and without it, what the rows take on the disk, and how many
epochs will read them.
"""

from __future__ import annotations

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

_DISK_SHARE = 0.5
_WORTH = 0.2
_ROUND = 512
_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}
_COMPILE_FLOPS = 3e13
"""Arithmetic for each core from which on compiling repays: a third less time, for 15 to 25 s of compiling."""
_RESIDENT_BYTES = {"cpu": 2**29, "cuda": 16 * 2**30, "mps": 2**30}


@dataclass(frozen=True)
class FixedView:
    """One fixed way to show an image: its name in cache keys, and how it is drawn (augment.py)."""

    name: str
    augment: str = "none"
    draws: Callable[[Sequence[str]], Tensor] | None = None
    """Gives the draws `[N, 8]` for images of these hashes."""


IDENTITY = FixedView("plain")


@dataclass(frozen=True)
class Estimate:
    """What keeping the output of the first `cut` stages would take and save."""

    depth: int
    bytes: int
    saved: float
    """Share of all arithmetic that is saved, in 0..1."""
    free: int
    """Bytes free on the cache's disk."""

    @property
    def pays(self) -> bool:
        """Whether it saves enough and leaves the disk enough room."""
        return self.saved >= _WORTH and self.bytes <= _DISK_SHARE * self.free


@dataclass(frozen=True)
class _Work:
    """Floating-point operations of one image before and after a cut, and what is kept of it there."""

    before: int
    after: int
    row_shape: tuple[int, ...]
    is_channels_last: bool
    """Whether the network has its activations in that order in memory; rows have it too, since kernels hang on it."""


@dataclass
class PrefixCache:
    """Outputs of a network's first stages, by image."""

    net: Net
    preprocess: Preprocess
    compute: Compute
    folder: Path
    _works: dict[tuple[int, int], _Work] = field(default_factory=dict)

    def estimate(self, prefix: int, num_train: int, num_val: int, epochs: int, views: int) -> Estimate:
        """Count the arithmetic of one image through the stages; a step forward and back costs three times a forward."""
        train, val = (self._work(prefix, size) for size in (self.preprocess.image_size, self.preprocess.eval_size))
        steps = epochs * (3 * num_train * train.after + num_val * val.after)
        without = epochs * (num_train * train.before + num_val * val.before) + steps
        unit_weights = views * num_train * train.before + num_val * val.before
        itemsize = 2 if self.compute.precision == "bf16" else 4
        size = itemsize * (views * num_train * int(np.prod(train.row_shape)) + num_val * int(np.prod(val.row_shape)))
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        return Estimate(prefix, size, 1 - (unit_weights + steps) / without, shutil.disk_usage(existing).free)

    def _work(self, prefix: int, size: int) -> _Work:
        """What one image of a size costs up to the cut and after it."""
        if (prefix, size) not in self._works:
            image = torch.zeros(1, 3, size, size, device=self.compute.device)
            self.net.eval()
            with torch.no_grad():
                with FlopCounterMode(display=False) as counter:
                    middle = self.net.forward_stages(image, 0, prefix)
                before = counter.get_total_flops()
                with FlopCounterMode(display=False) as counter:
                    self.net.forward_stages(middle, prefix, len(self.net.stages))
            is_last = middle.ndim == 4 and middle.stride()[1] == 1 and middle.stride()[3] == middle.shape[1]
            row_shape = tuple(_row(middle, is_last).shape[1:])
            self._works[prefix, size] = _Work(before, counter.get_total_flops(), row_shape, is_last)
        return self._works[prefix, size]

    def exact_cut(self, prefix: int) -> int:
        """How many of the first stages give an image the same bits wherever it stands among those it is computed with.

        That is so for most, but not where threads cut a sum in another way. What was found is remembered.
        """
        sides = sorted({self.preprocess.image_size, self.preprocess.eval_size})
        asked = [self._key(prefix), sides, EXACT_ROWS, torch.get_num_threads()]
        return int(self._remembered(asked, lambda: min(self._exact_cut(prefix, side) for side in sides)))

    def _exact_cut(self, prefix: int, side: int) -> int:
        whole = torch.rand(EXACT_ROWS, 3, side, side, generator=torch.Generator().manual_seed(0))
        whole = whole.to(self.compute.device).contiguous(memory_format=torch.channels_last)
        others = [torch.randperm(EXACT_ROWS, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
        self.net.eval()
        with torch.inference_mode():
            for number in range(prefix):
                made = self.net.forward_stages(whole, number, number + 1)
                if not all(
                    torch.equal(self.net.forward_stages(whole[order], number, number + 1), made[order])
                    for order in others
                ):
                    return number
                whole = made
        return prefix

    def _remembered(self, asked: object, measure: Callable[[], float]) -> float:
        """What was measured for this before, or is now; kept in the cache folder."""
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]
        file = self.folder / "checked" / f"{name}.json"
        try:
            return float(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            found = measure()
            with suppress(InatFtError):  # where it cannot be written, the next run measures it again
                write_text(file, f"{found!r}\n")
            return found

    def prefix_forward(self, depth: int, hashes: Sequence[str], sample: Callable[[], Tensor]) -> PrefixForward:
        """The first stages in the form in which they are computed.

        sample(): inputs `[S, 3, H, W]`, made from the images of these hashes, on which bfloat16 is held against float32;
        what was found is remembered in the cache folder.
        """
        key = self._key(depth)
        error = None
        if self.compute.exact:
            prefix_forward = exact_prefix(self.net, depth)
        elif self.compute.precision == "fp32":
            prefix_forward = folded_prefix(self.net, depth)
        elif self.compute.forced:
            prefix_forward = bf16_prefix(self.net, depth)
        else:
            asked = [pixels_key(self.preprocess.image_size, self.preprocess.resizing) | key, sorted(hashes)]
            known = self._remembered(asked, lambda: relative_error(self.net, depth, sample()))
            error = self.compute.process_group.broadcast(known)
            prefix_forward = (bf16_prefix if error <= MAX_ERROR else folded_prefix)(self.net, depth)
        return replace(prefix_forward, error=error, key=key)

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
        self,
        prefix_forward: PrefixForward,
        estimate: Estimate,
        pixels: Pixels,
        view: FixedView,
        progress: ProgressFn,
        log: Log = ignore_log,
    ) -> RowSource:
        """The output of the first stages for the images, computed where it is not there yet."""
        key = {**pixels.key, **prefix_forward.key, "form": prefix_forward.form, "view": view.name}
        work = self._work(estimate.depth, pixels.size)
        is_bf16 = prefix_forward.dtype == torch.bfloat16
        store = open_store(self.folder, "prefix", key, work.row_shape, "u2" if is_bf16 else "f4")

        def make(missing: Sequence[int]) -> Iterator[NDArray[Any]]:
            module = self.built(prefix_forward, estimate.depth, pixels.size, len(missing), log)
            return self._compute(module, prefix_forward, pixels, view, missing, work)

        if self.compute.process_group.size > 1:
            self._ensure_together(store, pixels.hashes, make, progress)
        store.ensure(pixels.hashes, make, progress)
        return self._resident(StoredRows(*store.read(pixels.hashes), as_bfloat16=is_bf16), store, len(pixels))

    def _ensure_together(self, store: Store, hashes: Sequence[str], make: Make, progress: ProgressFn) -> None:
        """Each process computes a share of what is missing; the first one writes it all."""
        process_group = self.compute.process_group

        def in_shares(missing: Sequence[int]) -> Iterator[NDArray[Any]]:
            yield from self._in_shares(make, store, process_group.broadcast(missing))

        if not process_group.is_main_process:
            for _ in self._in_shares(make, store, process_group.broadcast(None)):
                pass
        elif not store.ensure(hashes, in_shares, progress):
            process_group.broadcast([])
        process_group.barrier()

    def _in_shares(self, make: Make, store: Store, missing: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Rows in the order of `missing`, a round of `_ROUND` rows at a time of which each process makes a part."""
        process_group = self.compute.process_group
        for start in range(0, len(missing), _ROUND * process_group.size):
            part = missing[start : start + _ROUND * process_group.size]
            own = list(make(part[process_group.shard(len(part))])) or [np.empty((0, *store.row_shape), store.dtype)]
            rows = torch.from_numpy(np.concatenate(own).astype(store.dtype)).view(torch.uint8)
            made = process_group.all_gather(rows.to(self.compute.device), process_group.shard_sizes(len(part)))
            yield torch.cat(made).cpu().numpy().view(store.dtype)

    def activation(self, depth: int, size: int) -> Callable[[Tensor, Tensor], Tensor]:
        """From rows of images of a size to what the next stage takes, float32."""
        is_channels_last = self._work(depth, size).is_channels_last
        return lambda rows, numbers: rows.float().permute(0, 3, 1, 2) if is_channels_last else rows.float()

    def _compute(
        self,
        module: nn.Module,
        prefix_forward: PrefixForward,
        pixels: Pixels,
        view: FixedView,
        missing: Sequence[int],
        work: _Work,
    ) -> Iterator[NDArray[Any]]:
        """The front applied to some images, in blocks; decoding goes on meanwhile."""
        draws = view.draws(pixels.hashes).to(self.compute.device) if view.draws else None
        prepare = ImageInput(self.preprocess.mean, self.preprocess.std, view.augment, draws)
        source: RowSource = StoredRows(*pixels.store.read(pixels.hashes)) if pixels.is_packed() else pixels.files()
        size, at = _BATCH[self.compute.device.type], 0
        while at < len(missing):
            try:
                batches = Batches(source, pixels.labels, size, prepare)
                for inputs, _ in batches(torch.tensor(missing[at:])):
                    with torch.inference_mode():
                        made = _row(module(inputs.to(prefix_forward.dtype)), work.is_channels_last).contiguous().cpu()
                    at += len(made)
                    yield made.view(torch.uint16).numpy() if made.dtype == torch.bfloat16 else made.float().numpy()
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                size //= 2
                if isinstance(module, Compiled):  # which would fill smaller batches up again
                    module = module.stages
                self.compute.free_memory()

    def built(self, prefix_forward: PrefixForward, depth: int, size: int, count: int, log: Log) -> nn.Module:
        """The first `cut` stages in that form, for so many images of that size.

        Compiled where they repay that on a CPU; for one pass on a GPU they hardly ever do.
        """
        work = self._work(depth, size)
        alone = self.compute.device.type == "cpu" and self.compute.process_group.size == 1
        repays = count * work.before >= _COMPILE_FLOPS * num_cores()
        if self.compute.exact or not alone or not repays or not has_compiler():
            return prefix_forward.build()
        log(f"prefix: compiled with torch.compile, which {count:,} images repay")
        return Compiled(prefix_forward.build(), log)

    def _resident(self, stored: StoredRows, store: Store, count: int) -> RowSource:
        """Small rows stay in the device's memory; large ones are read as they are needed."""
        if count * store.row_bytes > _RESIDENT_BYTES[self.compute.device.type]:
            return stored
        return ResidentRows(stored.rows(torch.arange(count)).to(self.compute.device))


def _row(activation: Tensor, is_channels_last: bool) -> Tensor:
    """Activations as rows are kept: `[B, H, W, C]` where the network keeps channels last; others as they are."""
    return activation.permute(0, 2, 3, 1) if is_channels_last else activation
