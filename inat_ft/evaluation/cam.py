"""Where a network looked: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) for any backbone. Needs the extra `cam`.

The map is taken from the last module that still has places to tell apart, found by running the network, so no backbone
needs an entry of its own. In a transformer that answers from a class token it lies before the last attention, since behind
it no patch reaches the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inat_ft.data.batches import ImageFiles, ImageInput
from inat_ft.errors import UsageError
from inat_ft.evaluation.predict import LoadedModel
from inat_ft.threads import decoders

_BATCH = 8
_EXTRA_TOKENS = (0, 1, 2, 5)
"""Class, distillation and register tokens in front of the patches, as networks have them."""


@dataclass(frozen=True)
class _Layout:
    """How activations become maps `[N, C, S, S]`: order of axes, and tokens in front that belong to no place."""

    kind: str
    extra: int = 0

    def maps(self, x: Tensor) -> Tensor:
        if self.kind == "channels first":
            return x
        if self.kind == "channels last":
            return x.permute(0, 3, 1, 2)
        side = isqrt(x.shape[1] - self.extra)
        return x[:, self.extra :].transpose(1, 2).reshape(len(x), -1, side, side)

    def back(self, maps: Tensor, x: Tensor) -> Tensor:
        """What `maps` was made from; `x` lends the tokens that belong to no place."""
        if self.kind == "channels first":
            return maps
        if self.kind == "channels last":
            return maps.permute(0, 2, 3, 1)
        return torch.cat([x[:, : self.extra], maps.flatten(2).transpose(1, 2)], 1)


def _layout(x: object, count: int) -> _Layout | None:
    """The layout of an activation of `count` images; None when it has no places or the number of images is another."""
    if not isinstance(x, Tensor) or x.dim() not in (3, 4) or len(x) != count or not x.requires_grad:
        return None
    if x.dim() == 4 and x.shape[2] == x.shape[3] > 1:
        return _Layout("channels first")
    if x.dim() == 4 and x.shape[1] == x.shape[2] > 1:
        return _Layout("channels last")
    if x.dim() == 3:
        for extra in _EXTRA_TOKENS:
            patches = x.shape[1] - extra
            if patches > 1 and isqrt(patches) ** 2 == patches:
                return _Layout("tokens", extra)
    return None


def check_cam(trained: LoadedModel) -> None:
    """Raises UsageError when captum is not installed, or the network tells no places of its images apart."""
    _import_captum()
    size, seeded = trained.preprocess.eval_size, torch.Generator().manual_seed(0)
    _last_with_places(trained.net, torch.rand(2, 3, size, size, generator=seeded).to(trained.compute.device))


def grad_cam(trained: LoadedModel, paths: Sequence[Path], classes: Sequence[int]) -> Tensor:
    """How much each place spoke for the class named, float32 `[N, S, S]`, 0 to 1 within each image.

    Raises UsageError as `require_maps` does.
    """
    gradcam = _import_captum()
    net, device = trained.net, trained.compute.device
    prepare = ImageInput(trained.preprocess.mean, trained.preprocess.std)
    found = []
    with decoders() as pool:
        source = ImageFiles(paths, trained.preprocess.eval_size, pool, resizing=trained.preprocess.resizing)
        for start in range(0, len(paths), _BATCH):
            numbers = torch.arange(start, min(start + _BATCH, len(paths)))
            images = prepare(source.rows(numbers).to(device), numbers)
            with _cam_layer(net, images) as spot:
                target = torch.tensor([classes[number] for number in numbers], device=device)
                maps = gradcam(net, spot).attribute(images, target, relu_attributions=True).detach()[:, 0].float().cpu()
            found.append(maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12))
    return torch.cat(found)


@contextmanager
def _cam_layer(net: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """An identity that sees, as maps, what comes out of the last module in which places matter to the answer."""
    chosen, layout = _last_with_places(net, images)
    spot = nn.Identity()

    def detour(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return layout.back(spot(layout.maps(output)), output)

    handle = chosen.register_forward_hook(detour)
    try:
        yield spot
    finally:
        handle.remove()


def _last_with_places(net: nn.Module, images: Tensor) -> tuple[nn.Module, _Layout]:
    calls: Counter[nn.Module] = Counter()
    seen: list[tuple[nn.Module, Tensor, _Layout]] = []

    def look(module: nn.Module, inputs: Any, output: object) -> None:
        calls[module] += 1
        layout = None if isinstance(module, nn.Linear) else _layout(output, len(images))  # queries and keys are no maps
        if layout is not None and isinstance(output, Tensor):
            seen.append((module, output, layout))

    handles = [module.register_forward_hook(look) for module in net.modules()]
    try:
        with torch.enable_grad():
            answer = net(images)
    finally:
        for handle in handles:
            handle.remove()
    seen = [entry for entry in seen if calls[entry[0]] == 1]
    gradients = torch.autograd.grad(answer.sum(), [x for _, x, _ in seen], allow_unused=True) if seen else ()
    for (module, _, layout), gradient in reversed(list(zip(seen, gradients, strict=True))):
        if gradient is not None and (layout.maps(gradient).abs().sum((0, 1)) > 0).sum() > 1:
            return module, layout
    raise UsageError(
        f"no part of this network tells places apart at {images.shape[-1]} pixels, so there is nothing to overlay",
        "leave --cam out, or show it larger images: --image-size N",
    )


def _import_captum() -> Any:
    try:
        from captum.attr import LayerGradCam
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Grad-CAM needs the package {error.name}, which is not installed", "pip install 'inat-ft[cam]'"
        ) from None
    return LayerGradCam
