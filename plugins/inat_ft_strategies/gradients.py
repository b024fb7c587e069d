"""The relative gradient norms of a pretrained network on new images (RGN, Lee et al. 2023, arXiv 2210.11466)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.linalg import vector_norm
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
    """Return the norm of the gradient divided by the norm of the weights, by the original name of each parameter.

    The gradient is that of the mean cross-entropy over at most 512 evenly spaced images, in eval mode. labels: `[N]` int64.
    The network is not changed.
    """
    chosen = torch.linspace(0, len(paths) - 1, min(MAX_IMAGES, len(paths))).long()
    trainable = [parameter.requires_grad for parameter in net.parameters()]
    net.eval().requires_grad_(True).zero_grad(set_to_none=True)
    with decoders() as pool:
        source = ImageFiles(paths, preprocess.image_size, pool, resizing=preprocess.resizing)
        batches = Batches(source, labels.to(compute.device), _BATCH, ImageInput(preprocess.mean, preprocess.std))
        for inputs, targets in batches(chosen):
            net.eval()  # in every batch: some layers keep a tensor, and its graph, in eval mode
            loss = F.cross_entropy(net(inputs), targets, reduction="sum") / len(chosen)
            torch.autograd.backward(loss)
    norms = {
        net.original_name(name): float(vector_norm(parameter.grad) / vector_norm(parameter.detach()).clamp(min=1e-12))
        for name, parameter in net.named_parameters()
        if parameter.grad is not None
    }
    net.zero_grad(set_to_none=True)
    for parameter, requires_grad in zip(net.parameters(), trainable, strict=True):
        parameter.requires_grad_(requires_grad)
    return norms
