"""Augment training images, a batch at a time, on the device.

Random numbers are drawn in advance from seed, epoch and image number, so results do not depend on batches, threads or
devices. torchvision's transforms draw once per batch; here each image has its own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_DRAWS = 8
_AREA = (0.35, 1.0)
_LOG_RATIO = math.log(4 / 3)
_JITTER = 0.3
_GRAY = (0.299, 0.587, 0.114)


def draw(num_images: int, generator: torch.Generator) -> Tensor:
    """Draw random numbers in 0..1 for one epoch, float32 `[N, 8]` on the CPU."""
    return torch.rand(num_images, _DRAWS, generator=generator)


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Flip half of the images horizontally. images: `[B, H, W, 3]` of any type; draws: `[B, 8]`, same device."""
    return torch.where((draws[:, 0] < 0.5)[:, None, None, None], images.flip(2), images)


def standard(images: Tensor, draws: Tensor) -> Tensor:
    """Random resized crop (35-100 % of the area, ratio 3:4 to 4:3), horizontal flip and color jitter (30 %).

    images: uint8 `[B, H, W, 3]`; returns float32 `[B, H, W, 3]` in 0..255. Crops are only enlarged,
    so they need no antialiasing. As in torchvision's training recipe, with a larger smallest area.
    """
    pixels = images.permute(0, 3, 1, 2).to(torch.float32)
    grid = _grid(pixels, draws)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _jitter(pixels, draws).permute(0, 2, 3, 1)


def blender(mixup: float, cutmix: float, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return a function that mixes inputs `[B, 3, H, W]` and returns targets `[B, C]` for labels `[B]`; None without mixing.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899), from torchvision;
    with both, one is chosen at random for each batch.
    """
    if not (mixup or cutmix):
        return None
    from torchvision.transforms import v2

    kinds: list[v2.Transform] = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
    kinds += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
    chosen: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = v2.RandomChoice(kinds)
    return chosen


def _grid(pixels: Tensor, draws: Tensor) -> Tensor:
    mirror = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * draws[:, 1]
    stretch = torch.exp(_LOG_RATIO * (draws[:, 2] - 0.5))  # square root of the ratio
    width, height = ((area.sqrt() * factor).clamp(max=1.0) for factor in (stretch, 1 / stretch))
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * width, height
    theta[:, 0, 2] = (2 * draws[:, 3] - 1) * (1 - width)
    theta[:, 1, 2] = (2 * draws[:, 4] - 1) * (1 - height)
    return F.affine_grid(theta, list(pixels.shape), align_corners=False)


def _jitter(pixels: Tensor, draws: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation by 0.7 to 1.3 each."""
    brightness, contrast, saturation = (1 + _JITTER * (2 * draws[:, 5:8] - 1)).T[:, :, None, None, None]
    shares = [torch.full((1, 1), share, device=pixels.device) for share in _GRAY]  # no copy from the host
    weights = torch.stack(shares)
    pixels = (pixels * brightness).clamp(0, 255)
    mean = (pixels * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = torch.lerp(mean, pixels, contrast).clamp(0, 255)
    gray = (pixels * weights).sum(1, keepdim=True)
    return torch.lerp(gray, pixels, saturation).clamp(0, 255)
