"""How strongly new images pull at each weight of a pretrained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from inat_ft.data.batches import Batches, ImageFiles, ImageInput
from inat_ft.engine.device import Compute
from inat_ft.models.base import Preprocess
from inat_ft.models.net import Net
from inat_ft.threads import decoders

MAX_IMAGES = 512

_BATCH = 32


def relative_gradient_norms(
    net: Net, paths: Sequence[Path], labels: Tensor, preprocess: Preprocess, compute: Compute
) -> dict[str, float]:
    """For each parameter, by its name in the classifier, the norm of its gradient over its own norm.

    The gradient is that of the mean cross-entropy over at most 512 of the (training) images, evenly chosen, with the
    network in eval mode. Lee et al. 2023, arXiv 2210.11466. The network is left as it was.
    """
    chosen = torch.linspace(0, len(paths) - 1, min(MAX_IMAGES, len(paths))).long()
    learned = [parameter.requires_grad for parameter in net.parameters()]
    net.eval().requires_grad_(True).zero_grad(set_to_none=True)
    with decoders() as pool:
        source = ImageFiles(paths, preprocess.image_size, pool, resizing=preprocess.resizing)
        batches = Batches(source, labels.to(compute.device), _BATCH, ImageInput(preprocess.mean, preprocess.std))
        for inputs, wanted in batches(chosen):
            net.eval()  # once more: some layers keep a tensor in evaluation, and its graph with it
            loss = F.cross_entropy(net(inputs), wanted, reduction="sum") / len(chosen)
            torch.autograd.backward(loss)
    ratios = {
        net.original_name(name): float(parameter.grad.norm() / parameter.detach().norm().clamp(min=1e-12))
        for name, parameter in net.named_parameters()
        if parameter.grad is not None
    }
    net.zero_grad(set_to_none=True)
    for parameter, requires in zip(net.parameters(), learned, strict=True):
        parameter.requires_grad_(requires)
    return ratios
