"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) for any backbone. Requires the extra `cam`.

The map is taken from the last module with spatial positions that influence the output. It is found by running the network,
so no backbone needs an entry of its own. In a transformer that classifies from a class token, this module is before the last
attention, because after it no patch reaches the output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from inat_ft_figures.figures import most_confident_mistakes, sample_grid
from inat_ft_figures.grids import draw_images
from torch import Tensor, nn

from inat_ft.data.batches import ImageFiles, ImageInput
from inat_ft.engine.loops import in_halves
from inat_ft.errors import UsageError
from inat_ft.evaluation.predict import LoadedModel
from inat_ft.metrics.base import Predictions
from inat_ft.threads import decoders

_BATCH = 8
_EXTRA_TOKENS = (0, 1, 2, 5)
"""Common numbers of class, distillation and register tokens before the patches."""


@dataclass(frozen=True)
class _Layout:
    """How activations are converted to maps `[N, C, S, S]`. order: of the axes of a 4D tensor, None for tokens."""

    order: tuple[int, ...] | None
    extra: int = 0

    def maps(self, x: Tensor) -> Tensor:
        if self.order:
            return x.permute(self.order)
        side = isqrt(x.shape[1] - self.extra)
        return x[:, self.extra :].transpose(1, 2).reshape(len(x), -1, side, side)

    def back(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return the activation that `maps` was made from; the extra tokens are taken from `x`."""
        if self.order:
            return maps.permute([self.order.index(axis) for axis in range(4)])
        return torch.cat([x[:, : self.extra], maps.flatten(2).transpose(1, 2)], 1)


def _layout(x: object, count: int) -> _Layout | None:
    """Return the layout of an activation of `count` images; None when it has no spatial positions."""
    if not isinstance(x, Tensor) or x.dim() not in (3, 4) or len(x) != count or not x.requires_grad:
        return None
    if x.dim() == 4:
        orders = ((0, 1, 2, 3), (0, 3, 1, 2))
        return next((_Layout(order) for order in orders if x.shape[order[2]] == x.shape[order[3]] > 1), None)
    patches = ((x.shape[1] - extra, extra) for extra in _EXTRA_TOKENS)
    return next((_Layout(None, extra) for left, extra in patches if left > 1 and isqrt(left) ** 2 == left), None)


def prepare_cam(trained: LoadedModel) -> Callable[..., list[Path]]:
    """Return `draw_cam` for a classifier, called with predictions, folder, subset and root. Raises as `check_cam` does."""
    check_cam(trained)
    return partial(draw_cam, trained)


def draw_cam(trained: LoadedModel, p: Predictions, folder: Path, subset: str, root: Path) -> list[Path]:
    """Draw Grad-CAM of the predicted class on the images of the grid and on the most confident mistakes."""
    chosen = {"cam": (sample_grid(p), f"{subset.capitalize()} images: Grad-CAM of the predicted class")}
    if p.probabilities is not None:
        mistakes = most_confident_mistakes(p)
        chosen["cam_mistakes"] = (mistakes, "Most confident mistakes: Grad-CAM of the predicted class")
    files = []
    for name, (rows, title) in chosen.items():
        if rows:
            maps = grad_cam(trained, [root / p.paths[row] for row in rows], p.predicted[rows].tolist()).numpy()
            stem, resizing = folder / f"{name}-{subset}", trained.preprocess.resizing
            files += draw_images(p, rows, stem, root, title, maps, resizing)
    return files


def check_cam(trained: LoadedModel) -> None:
    """Raise UsageError when captum is not installed, or the network has no spatial positions at this image size."""
    _import_captum()
    size, seeded = trained.preprocess.eval_size, torch.Generator().manual_seed(0)
    _last_with_places(trained.net, torch.rand(2, 3, size, size, generator=seeded).to(trained.compute.device))


def grad_cam(trained: LoadedModel, paths: Sequence[Path], classes: Sequence[int]) -> Tensor:
    """Return the evidence for the given class at each position, float32 `[N, S, S]`, 0 to 1 within each image.

    Raises UsageError as `check_cam` does.
    """
    gradcam = _import_captum()
    net, device = trained.net, trained.compute.device
    prepare = ImageInput(trained.preprocess.mean, trained.preprocess.std)
    with decoders() as pool:
        source = ImageFiles(paths, trained.preprocess.eval_size, pool, resizing=trained.preprocess.resizing)

        def maps(numbers: Tensor) -> Tensor:
            images = prepare(source.rows(numbers).to(device), numbers)
            with _cam_layer(net, images) as probe:
                target = torch.tensor([classes[number] for number in numbers], device=device)
                found = gradcam(net, probe).attribute(images, target, relu_attributions=True)
            evidence: Tensor = found.detach()[:, 0].float().cpu()
            return evidence / evidence.amax((1, 2), keepdim=True).clamp_min(1e-12)

        parts = torch.arange(len(paths)).split(_BATCH)  # type: ignore[no-untyped-call]  # torch declares no types here
        return torch.cat([each for numbers in parts for each in in_halves(trained.compute, maps, numbers)])


@contextmanager
def _cam_layer(net: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """Insert an identity module that sees the output of the last spatial module as maps."""
    chosen, layout = _last_with_places(net, images)
    probe = nn.Identity()

    def detour(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return layout.back(probe(layout.maps(output)), output)

    handle = chosen.register_forward_hook(detour)
    try:
        yield probe
    finally:
        handle.remove()


def _last_with_places(net: nn.Module, images: Tensor) -> tuple[nn.Module, _Layout]:
    """Return the last module whose spatial positions influence the output. Raises UsageError when there is none."""
    calls: Counter[nn.Module] = Counter()
    seen: list[tuple[nn.Module, Tensor, _Layout]] = []

    def record(module: nn.Module, inputs: Any, output: object) -> None:
        calls[module] += 1
        layout = None if isinstance(module, nn.Linear) else _layout(output, len(images))  # skips queries and keys
        if layout is not None and isinstance(output, Tensor):
            seen.append((module, output, layout))

    handles = [module.register_forward_hook(record) for module in net.modules()]
    try:
        with torch.enable_grad():
            logits = net(images)
    finally:
        for handle in handles:
            handle.remove()
    seen = [entry for entry in seen if calls[entry[0]] == 1]
    gradients = torch.autograd.grad(logits.sum(), [x for _, x, _ in seen], allow_unused=True) if seen else ()
    for (module, _, layout), gradient in reversed(list(zip(seen, gradients, strict=True))):
        if gradient is not None and (layout.maps(gradient).abs().sum((0, 1)) > 0).sum() > 1:
            return module, layout
    raise UsageError(
        f"no layer of this network distinguishes positions at {images.shape[-1]} pixels, so Grad-CAM is not possible",
        "leave out --cam, or use larger images: --image-size N",
    )


def _import_captum() -> Any:
    try:
        from captum.attr import LayerGradCam
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Grad-CAM requires the package {error.name}, which is not installed", "pip install 'inat-ft[cam]'"
        ) from None
    return LayerGradCam
