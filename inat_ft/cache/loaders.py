"""The data loaders of a run: batches of images, or of the cached output of the frozen prefix."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from inat_ft.cache.frozen_prefix import IDENTITY, FixedView, PrefixCache
from inat_ft.cache.packed_images import Pixels
from inat_ft.cache.prefix_forward import PrefixForward
from inat_ft.config import RunConfig
from inat_ft.data.batches import Batches, ImageInput, MixedViews, ResidentRows, RowSource, StoredRows, to_device
from inat_ft.data.manifest import Manifest
from inat_ft.engine.fit import epoch_generator
from inat_ft.engine.plan import TrainingPlan
from inat_ft.images import augment
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft.text import format_bytes, pluralize

_CHECKED_IMAGES = 64

FLIPPED = FixedView("flipped", "flip", lambda hashes: torch.zeros(len(hashes), 8))


def subset_images(
    manifest: Manifest,
    subset: str,
    hashes: Sequence[str],
    cache: PrefixCache,
    pool: ThreadPoolExecutor,
    decoder: str = "cpu",
) -> Pixels:
    """Return the images of a subset at their size for training or evaluation. hashes: of all rows of the manifest."""
    rows, preprocess = manifest.rows(subset), cache.preprocess
    return Pixels(
        [manifest.files[row] for row in rows],
        [hashes[row] for row in rows],
        torch.from_numpy(manifest.labels[rows]).to(cache.compute.device),
        preprocess.image_size if subset == "train" else preprocess.eval_size,
        cache.folder,
        pool,
        preprocess.resizing,
        decoder,
    )


def _fixed_draws(hashes: Sequence[str], numbers: Sequence[int]) -> Tensor:
    """Return the draws of `augment.standard` for the fixed view of each image with this number, `[N, 8]` float32."""
    pairs = zip(hashes, numbers, strict=True)
    digests = (hashlib.sha256(f"{name} {number}".encode()).digest() for name, number in pairs)
    words = np.stack([np.frombuffer(digest, "<u4") for digest in digests])
    return torch.from_numpy((words / 2**32).astype(np.float32))


def _fixed_view(number: int) -> FixedView:
    """Return a fixed augmentation that depends on the content of the image."""
    return FixedView(f"standard {number}", "standard", lambda hashes: _fixed_draws(hashes, [number] * len(hashes)))


@dataclass
class _FrozenPrefix:
    """A frozen prefix while its output stays the same.

    since: the last epoch that trained a part of it. depth: number of stages that are computed separately, which is all of
    them unless exactness forbids it. cached: whether the output is cached.
    """

    prefix: int
    since: int
    depth: int
    cached: bool
    decisions: list[str]
    """Those of the run that used it first."""
    forward: PrefixForward | None = None
    recompute: Callable[[Tensor], Tensor] | None = None
    rows: dict[str, list[StoredRows] | Tensor] = field(default_factory=dict)
    """The stored rows of each view of a subset, or, if the device has the memory, those of all views on it."""
    budget: int | None = None
    """Bytes of rows that may still be kept on the device."""


@dataclass
class EpochLoaders:
    """The batches of each epoch of a plan. image_weights: `[N]`, draw training images with these weights.

    With `data.views`, an image has that many fixed augmentations, cached or not; otherwise it has a new one in every epoch,
    which cannot be cached. Images that are mixed in every step (mixup, cutmix) cannot be cached either.
    """

    plan: TrainingPlan
    train_pixels: Pixels
    val_pixels: Pixels
    prefix_cache: PrefixCache
    config: RunConfig
    image_weights: Tensor | None = None
    progress: ProgressBar = no_progress
    log: Log = ignore_log
    decisions: list[str] = field(default_factory=list)
    """Everything that was logged, for the record."""
    _last: _FrozenPrefix | None = None
    _images: dict[str, RowSource] = field(default_factory=dict)

    def train(self, prefix: int, epoch: int) -> Batches:
        """Return the training batches of an epoch."""
        data, draws, choice = self.config.data, None, None
        if data.augment != "none":
            draws = augment.draw(len(self.train_pixels), epoch_generator(self.config.seed, epoch, "augment"))
            choice = (draws[:, 0] < 0.5).long() if data.augment == "flip" else (draws[:, 0] * data.views).long()
        frozen = self._frozen(prefix, epoch)
        if frozen.cached:
            return self._cached_batches(frozen, self.train_pixels, "train", self._cached_views(), choice)
        if choice is not None and data.augment == "standard" and data.views:
            draws = _fixed_draws(self.train_pixels.hashes, choice.tolist())
        return self._image_batches(frozen, self.train_pixels, "train", epoch, draws)

    def val(self, prefix: int, epoch: int) -> Batches:
        """Return the validation batches, without augmentation."""
        frozen = self._frozen(prefix, epoch)
        if frozen.cached:
            return self._cached_batches(frozen, self.val_pixels, "val", [IDENTITY])
        return self._image_batches(frozen, self.val_pixels, "val", epoch)

    def sample_order(self, generator: torch.Generator) -> Tensor:
        """Return the training images in random order, or as many drawn with replacement by their weights."""
        if self.image_weights is not None:
            return torch.multinomial(self.image_weights, len(self.train_pixels), True, generator=generator)
        return torch.randperm(len(self.train_pixels), generator=generator)

    @property
    def _is_mixed(self) -> bool:
        return bool(self.config.optim.mixup or self.config.optim.cutmix)

    def _cached_views(self) -> list[FixedView]:
        """Return the views that are cached for each training image; none if they change in every epoch."""
        data = self.config.data
        if self._is_mixed:
            return []
        if data.augment == "none":
            return [IDENTITY]
        return [IDENTITY, FLIPPED] if data.augment == "flip" else [_fixed_view(number) for number in range(data.views)]

    def _frozen(self, prefix: int, epoch: int) -> _FrozenPrefix:
        """Return the frozen prefix of an epoch; decide and log whether to cache it when it is new."""
        since = self.plan.last_trained_epoch(prefix, epoch)
        if self._last is None or (self._last.prefix, self._last.since) != (prefix, since):
            key = (prefix, self.config.data.augment, self.config.data.views, self.config.compute.cache, self._is_mixed)
            kept = self.prefix_cache.frozen if since == 0 else {}
            if key not in kept:
                depth, compute = prefix, self.prefix_cache.compute
                if prefix and compute.exact:
                    depth = compute.process_group.broadcast(self.prefix_cache.exact_depth(prefix))
                kept[key] = _FrozenPrefix(prefix, since, depth, self._decide(prefix, depth, epoch), self.decisions)
            self._last = kept[key]
            self.decisions += [line for line in self._last.decisions if line not in self.decisions]
        return self._last

    def _decide(self, prefix: int, depth: int, epoch: int) -> bool:
        """Return whether to cache the first `depth` stages, and log why."""
        names, mode, views = self.plan.net.stage_names, self.config.compute.cache, len(self._cached_views())
        if mode == "none":
            self._log("cache: none")
            return False
        if prefix == 0 or depth == 0 or mode == "packed" or views == 0:
            self._log(f"prefix cache: off, because {self._why_off(prefix)}")
            return False
        epochs = self.plan.epochs_until_thaw(epoch)
        estimate = self.prefix_cache.estimate(depth, len(self.train_pixels), len(self.val_pixels), epochs, views)
        # features before the head are small and shared by all runs with these weights
        is_small = depth == len(names) and estimate.bytes <= estimate.free / 2
        used = self.prefix_cache.compute.process_group.broadcast(mode == "prefix" or estimate.pays or is_small)
        stages = names[0] if depth == 1 else f"{names[0]}..{names[depth - 1]}"
        self._log(
            f"prefix cache: {'on' if used else 'off'} for {stages} ({format_bytes(estimate.bytes)}, saves "
            f"{max(estimate.saved, 0):.0%} of the {estimate.unit} of {pluralize(epochs, 'epoch')})"
        )
        return bool(used)

    def _why_off(self, prefix: int) -> str:
        if prefix == 0:
            return "no layers are frozen"
        if self._is_mixed:
            return "images are blended"
        if self.config.compute.cache == "packed":
            return "of --cache packed"
        if not self._cached_views():
            return "the augmentation is random"
        return "the output of the first layer depends on the batch, and --precision fp32 is exact"

    def _cached_batches(
        self,
        frozen: _FrozenPrefix,
        pixels: Pixels,
        subset: str,
        views: Sequence[FixedView],
        choice: Tensor | None = None,
    ) -> Batches:
        """Return batches of the prefix's output; compute it first for images that are not in the cache."""
        if subset not in frozen.rows:
            forward, sources = self._prefix_forward(frozen), []
            for view in views:
                name = f"frozen layers, {subset}" + ("" if view == IDENTITY else f", {view.name}")
                with self.progress(name) as update:
                    sources.append(self.prefix_cache.rows(forward, pixels, view, update, self._log))
            frozen.rows[subset] = self._resident(frozen, sources)
        rows = frozen.rows[subset]
        if isinstance(rows, Tensor):
            chosen = None if choice is None else choice * len(pixels) + torch.arange(len(pixels))
            source: RowSource = ResidentRows(rows, None if chosen is None else to_device(chosen, rows.device))
        else:
            source = rows[0] if choice is None else MixedViews(rows, choice)
        prepare = self.prefix_cache.activation(frozen.depth, pixels.size)
        return Batches(source, pixels.labels, self.config.optim.batch_size, prepare, frozen.depth, self._min_batch)

    def _resident(self, frozen: _FrozenPrefix, sources: list[StoredRows]) -> list[StoredRows] | Tensor:
        """Return the rows on the device, or the sources if its memory is too small."""
        frozen.budget = self.prefix_cache.resident_budget() if frozen.budget is None else frozen.budget
        data = self.prefix_cache.resident(sources, frozen.budget)
        if data is None:
            size = format_bytes(sum(source.num_bytes for source in sources))
            self._log(f"prefix cache: read from the disk, because {size} do not fit in memory")
            return sources
        frozen.budget -= data.nbytes
        return data

    def _image_batches(
        self, frozen: _FrozenPrefix, pixels: Pixels, subset: str, epoch: int, draws: Tensor | None = None
    ) -> Batches:
        """Return batches of images; the frozen prefix is computed in every epoch."""
        preprocess, size = self.prefix_cache.preprocess, self.config.optim.batch_size
        draws = None if draws is None else to_device(draws, pixels.labels.device)
        prepare = ImageInput(preprocess.mean, preprocess.std, self.config.data.augment, draws)
        source, recompute = self._source(pixels, subset), self._recompute(frozen, epoch)
        return Batches(source, pixels.labels, size, prepare, min_batch=self._min_batch, frozen=recompute)

    @property
    def _min_batch(self) -> int:
        return max(2, self.prefix_cache.compute.process_group.size)

    def _recompute(self, frozen: _FrozenPrefix, epoch: int) -> Callable[[Tensor], Tensor] | None:
        """Return the forward pass of a prefix that is not cached; None if the network's own is used."""
        if frozen.recompute is None and frozen.depth:
            forward = self._prefix_forward(frozen)
            count = self.plan.epochs_until_thaw(epoch) * (len(self.train_pixels) + len(self.val_pixels))
            module = self.prefix_cache.build(forward, self.train_pixels.size, self._log, count)
            is_fp32 = self.prefix_cache.compute.precision == "fp32"  # then the next stages do not cast their inputs

            def recompute(inputs: Tensor) -> Tensor:
                outputs = module(inputs.to(forward.dtype))
                outputs = outputs.float() if is_fp32 else outputs
                return self.plan.net.forward_stages(outputs, frozen.depth, frozen.prefix)

            frozen.recompute = recompute
        return frozen.recompute

    def _prefix_forward(self, frozen: _FrozenPrefix) -> PrefixForward:
        if frozen.forward is None:
            count = len(self.train_pixels)
            numbers = torch.linspace(0, count - 1, min(_CHECKED_IMAGES, count)).long()
            hashes = [self.train_pixels.hashes[number] for number in numbers.tolist()]
            preprocess, device = self.prefix_cache.preprocess, self.train_pixels.labels.device
            prepare = ImageInput(preprocess.mean, preprocess.std)
            frozen.forward = self.prefix_cache.prefix_forward(
                frozen.depth,
                hashes,
                lambda: prepare(to_device(self.train_pixels.files().rows(numbers), device), numbers),
            )
            if errors := frozen.forward.errors:
                compared = " and ".join(f"{name} differs from fp32 by {error:.2%}" for name, error in errors.items())
                self._log(f"prefix: computed in {frozen.forward.form}; {compared}")
        return frozen.forward

    def _source(self, pixels: Pixels, subset: str) -> RowSource:
        """Return the images from the packed cache; from their files if they are read once or the cache is off."""
        if subset not in self._images:
            mode, once = self.config.compute.cache, len(self.plan.epochs) == 1
            if mode == "none" or (mode == "auto" and once and not pixels.is_packed()):
                self._images[subset] = pixels.files()
            else:
                if size := len(pixels.store.missing(pixels.hashes)) * pixels.store.row_bytes:
                    self._log(f"packed cache: {format_bytes(size)} to write for {subset}")
                with self.progress(f"decoding, {subset}") as update:
                    self._images[subset] = pixels.packed(update)
        return self._images[subset]

    def _log(self, line: str) -> None:
        """Log each decision once."""
        if line not in self.decisions:
            self.decisions.append(line)
            self.log(line)
