"""What the engine is fed with: images, or what a frozen prefix made of them, whichever costs less."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from inat_ft.cache.frozen_prefix import IDENTITY, Estimate, FixedView, PrefixCache
from inat_ft.cache.packed_images import Pixels
from inat_ft.cache.prefix_forward import PrefixForward
from inat_ft.data.batches import Batches, ImageInput, RowSource
from inat_ft.engine.fit import epoch_generator
from inat_ft.engine.plan import TrainingPlan
from inat_ft.images import augment
from inat_ft.models.base import Preprocess
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft.text import format_bytes

_CHECKED_IMAGES = 64

FLIPPED = FixedView("flipped", "flip", lambda hashes: torch.zeros(len(hashes), 8))


def fixed_view(number: int) -> FixedView:
    """Return one fixed variation of each image, which depends on the image's content."""
    return FixedView(f"standard {number}", "standard", lambda hashes: _fixed_draws(hashes, [number] * len(hashes)))


def _fixed_draws(hashes: Sequence[str], numbers: Sequence[int]) -> Tensor:
    """Return what `augment.standard` does to each image in its variation of this number, `[N, 8]` float32."""
    pairs = zip(hashes, numbers, strict=True)
    digests = (hashlib.sha256(f"{name} {number}".encode()).digest() for name, number in pairs)
    words = np.stack([np.frombuffer(digest, "<u4") for digest in digests])
    return torch.from_numpy((words / 2**32).astype(np.float32))


@dataclass
class _MixedViews:
    """For each image one of several sources of equal rows."""

    sources: Sequence[RowSource]
    choice: Tensor
    """`[N]` int64, on the CPU."""

    def __len__(self) -> int:
        return len(self.choice)

    def rows(self, numbers: Tensor) -> Tensor:
        rows = self.sources[0].rows(numbers).clone()
        for number, source in enumerate(self.sources[1:], 1):
            chosen = self.choice[numbers] == number
            if chosen.any():
                rows[chosen.to(rows.device)] = source.rows(numbers[chosen])
        return rows


@dataclass
class _FrozenPrefix:
    """A frozen prefix of so many stages, as long as what it makes of an image stays the same.

    since: the last epoch before it in which something in it learned. cut: how much of it is computed in a form of its own:
    all, unless that would not be exact. kept: what keeping that takes; None when it is computed whenever it is needed.
    """

    prefix: int
    since: int
    depth: int
    kept: Estimate | None
    prefix_forward: PrefixForward | None = None
    again: Callable[[Tensor], Tensor] | None = None
    rows: dict[str, list[RowSource]] = field(default_factory=dict)


@dataclass
class EpochLoaders:
    """Batches for each epoch of a plan.

    mode: the configured cache (auto, none, packed, prefix). views: number of fixed variations of an image with the
    augmentation `standard`, whether they are cached or not; 0: new ones in every epoch, which are never cached.
    image_weights: draw images by them instead of each once.
    """

    plan: TrainingPlan
    train_pixels: Pixels
    val_pixels: Pixels
    preprocess: Preprocess
    prefix_cache: PrefixCache
    batch_size: int
    seed: int
    augment: str = "none"
    mode: str = "auto"
    views: int = 0
    image_weights: Tensor | None = None
    blended: bool = False
    """Training images are blended with one another, anew in every step, so that nothing of them can be cached."""
    progress: ProgressBar = no_progress
    log: Log = ignore_log
    decisions: list[str] = field(default_factory=list)
    _last: _FrozenPrefix | None = None
    _images: dict[str, RowSource] = field(default_factory=dict)

    def train(self, prefix: int, epoch: int) -> Batches:
        """Training batches of an epoch."""
        draws = choice = None
        if self.augment != "none":
            draws = augment.draw(len(self.train_pixels), epoch_generator(self.seed, epoch, "augment"))
            choice = (draws[:, 0] < 0.5).long() if self.augment == "flip" else (draws[:, 0] * self.views).long()
        frozen = self._frozen(prefix, epoch)
        if frozen.kept is None:
            if choice is not None and self.augment == "standard" and self.views:
                draws = _fixed_draws(self.train_pixels.hashes, choice.tolist())
            device_draws = None if draws is None else draws.to(self.train_pixels.labels.device)
            return self._from_images(frozen, self.train_pixels, "train", device_draws, epoch)
        sources = self._rows(frozen, frozen.kept, self.train_pixels, "train", self._cached_views())
        source = sources[0] if choice is None else _MixedViews(sources, choice)
        return self._from_rows(source, self.train_pixels, frozen.depth)

    def val(self, prefix: int, epoch: int) -> Batches:
        """Validation batches, never varied."""
        frozen = self._frozen(prefix, epoch)
        if frozen.kept is None:
            return self._from_images(frozen, self.val_pixels, "val", None, epoch)
        (source,) = self._rows(frozen, frozen.kept, self.val_pixels, "val", [IDENTITY])
        return self._from_rows(source, self.val_pixels, frozen.depth)

    def _from_rows(self, source: RowSource, pixels: Pixels, depth: int) -> Batches:
        prepare = self.prefix_cache.activation(depth, pixels.size)
        return Batches(source, pixels.labels, self.batch_size, prepare, depth, self._min_batch)

    def sample_order(self, generator: torch.Generator) -> Tensor:
        """Each training image once in random order, or as many drawn by their weights."""
        if self.image_weights is not None:
            return torch.multinomial(self.image_weights, len(self.train_pixels), True, generator=generator)
        return torch.randperm(len(self.train_pixels), generator=generator)

    def _cached_views(self) -> list[FixedView]:
        if self.blended:
            return []
        if self.augment == "none":
            return [IDENTITY]
        return [IDENTITY, FLIPPED] if self.augment == "flip" else [fixed_view(number) for number in range(self.views)]

    def _frozen(self, prefix: int, epoch: int) -> _FrozenPrefix:
        """The frozen prefix of this epoch; whether its output is kept is decided when it is first met, and said."""
        since = self.plan.last_trained_epoch(prefix, epoch)
        if self._last is None or (self._last.prefix, self._last.since) != (prefix, since):
            depth = prefix
            if prefix and self.prefix_cache.compute.exact:
                depth = self.prefix_cache.compute.process_group.broadcast(self.prefix_cache.exact_cut(prefix))
            self._last = _FrozenPrefix(prefix, since, depth, self._decision(prefix, depth, epoch))
        return self._last

    def _decision(self, prefix: int, depth: int, epoch: int) -> Estimate | None:
        names = self.plan.net.stage_names
        views = len(self._cached_views())
        if prefix == 0 or self.mode in ("none", "packed") or views == 0:
            self._log(f"prefix cache: off, since {self._why_off(prefix)}" if self.mode != "none" else "cache: none")
            return None
        if depth == 0:
            self._log("prefix cache: off, since the frozen layers' output hangs on the batch and fp32 is exact")
            return None
        repeats = self.plan.epochs_until_thaw(epoch)
        counts = len(self.train_pixels), len(self.val_pixels)
        estimate = self.prefix_cache.estimate(depth, *counts, repeats, views)
        what = names[0] if depth == 1 else f"{names[0]}..{names[depth - 1]}"
        saves = (
            f"{format_bytes(estimate.bytes)}, saves {max(estimate.saved, 0):.0%} of the arithmetic of {repeats} epochs"
        )
        keeps_head_only = depth == len(names)  # features are small, and every other run on these weights shares them
        used = self.mode == "prefix" or estimate.pays or (keeps_head_only and estimate.bytes <= estimate.free / 2)
        used = self.prefix_cache.compute.process_group.broadcast(used)
        self._log(f"prefix cache: {'on' if used else 'off'} for {what} ({saves})")
        return estimate if used else None

    def _why_off(self, prefix: int) -> str:
        if prefix == 0:
            return "nothing is frozen"
        if self.blended:
            return "images are blended"
        return f"--cache {self.mode}" if self.mode == "packed" else "the augmentation is random"

    def _rows(
        self, frozen: _FrozenPrefix, kept: Estimate, pixels: Pixels, subset: str, views: Sequence[FixedView]
    ) -> list[RowSource]:
        """The prefix's output for each view of the images, computed where it is not there yet."""
        if subset not in frozen.rows:
            prefix_forward, sources = self._prefix_forward(frozen), []
            for view in views:
                name = f"frozen layers, {subset}" + ("" if view == IDENTITY else f", {view.name}")
                with self.progress(name) as update:
                    sources.append(self.prefix_cache.rows(prefix_forward, kept, pixels, view, update, self._log))
            frozen.rows[subset] = sources
        return frozen.rows[subset]

    def _recompute(self, frozen: _FrozenPrefix, epoch: int) -> Callable[[Tensor], Tensor] | None:
        """The prefix as it is computed anew whenever it is needed; None: as it stands in the network."""
        if frozen.again is None and frozen.depth:
            prefix_forward, images = self._prefix_forward(frozen), len(self.train_pixels) + len(self.val_pixels)
            times = self.plan.epochs_until_thaw(epoch) * images
            module = self.prefix_cache.built(prefix_forward, frozen.depth, self.train_pixels.size, times, self._log)
            run = self.plan.net.forward_stages
            frozen.again = lambda inputs: run(module(inputs.to(prefix_forward.dtype)), frozen.depth, frozen.prefix)
        return frozen.again

    def _prefix_forward(self, frozen: _FrozenPrefix) -> PrefixForward:
        if frozen.prefix_forward is None:
            count = len(self.train_pixels)
            numbers = torch.linspace(0, count - 1, min(_CHECKED_IMAGES, count)).long()
            hashes = [self.train_pixels.hashes[number] for number in numbers.tolist()]
            frozen.prefix_forward = self.prefix_cache.prefix_forward(
                frozen.depth, hashes, lambda: self._sample(numbers)
            )
            if frozen.prefix_forward.error is not None:
                self._log(
                    f"prefix: computed in {frozen.prefix_forward.form}; "
                    f"bf16 differs from fp32 by {frozen.prefix_forward.error:.2%}"
                )
        return frozen.prefix_forward

    def _sample(self, numbers: Tensor) -> Tensor:
        """Some training images as the network takes them."""
        prepare = ImageInput(self.preprocess.mean, self.preprocess.std)
        return prepare(self.train_pixels.files().rows(numbers).to(self.train_pixels.labels.device), numbers)

    def _from_images(
        self, frozen: _FrozenPrefix, pixels: Pixels, subset: str, draws: Tensor | None, epoch: int
    ) -> Batches:
        prepare = ImageInput(self.preprocess.mean, self.preprocess.std, self.augment, draws)
        source, again = self._pixels_of(pixels, subset), self._recompute(frozen, epoch)
        return Batches(source, pixels.labels, self.batch_size, prepare, min_batch=self._min_batch, frozen=again)

    @property
    def _min_batch(self) -> int:
        return max(2, self.prefix_cache.compute.process_group.size)

    def _pixels_of(self, pixels: Pixels, subset: str) -> RowSource:
        """Images from the packed cache, unless they are needed once only or it is switched off."""
        if subset not in self._images:
            if self.mode == "none" or (len(self.plan.epochs) == 1 and self.mode == "auto" and not pixels.is_packed()):
                self._images[subset] = pixels.files()
            else:
                size = len(pixels.store.missing(pixels.hashes)) * pixels.store.row_bytes
                if size:
                    self._log(f"packed cache: {format_bytes(size)} to write for {subset}")
                with self.progress(f"decoding, {subset}") as update:
                    self._images[subset] = pixels.packed(update)
        return self._images[subset]

    def _log(self, line: str) -> None:
        if line not in self.decisions:
            self.decisions.append(line)
            self.log(line)
