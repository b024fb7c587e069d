"""All of torchvision's classifiers, by family: what docs/backbones.md says of them.

    python -m tests.models.families > docs/backbones.md

Networks are built without memory for their weights, so that the largest take no longer than the smallest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torchvision
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchvision.models import list_models

from inat_ft.config import OptimConfig, build_strategy
from inat_ft.engine.plan import make_plan
from inat_ft.models.net import Net, make_net
from inat_ft.models.torchvision import Torchvision
from inat_ft.settings import load_config

NAMES = list_models(module=torchvision.models)


@dataclass(frozen=True)
class Row:
    """One classifier in the table."""

    name: str
    stages: tuple[str, ...]
    default: str
    image_size: int
    min_size: int
    parameters: int
    trained: dict[str, int]


@contextmanager
def no_memory() -> Iterator[None]:
    """Parameters that modules register meanwhile have shapes and no values."""

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        is_significant = parameter is not None and parameter.device.type != "meta"
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad) if is_significant else None

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        hook.remove()


def examine(name: str) -> Row:
    """Build a classifier, cut it, send an image through it cut and uncut, and ask the three strategies."""
    backbone = Torchvision(variant=name)
    pretrained = backbone.weights("imagenet")
    size = pretrained.preprocess.image_size
    with no_memory():
        net = make_net(name, backbone.build(1000, size, 0.3), 10, 0.3).to("meta").eval()
        with torch.no_grad():
            middle = torch.empty(2, 3, size, size, device="meta")
            for number in range(len(net.stages)):
                middle = net.forward_stages(middle, number, number + 1)
            assert net(torch.empty(2, 3, size, size, device="meta")).shape == net.head(middle).shape == (2, 10)
    trained = {mode: _trained(net, mode) for mode in ("head", "partial", "full")}
    total = sum(parameter.numel() for parameter in net.parameters())
    assert trained["head"] < trained["partial"] < trained["full"] == total
    return Row(name, net.stage_names, net.default_stage, size, pretrained.min_size, total, trained)


def _trained(net: Net, mode: str) -> int:
    strategy = build_strategy(load_config(None, [("strategy.name", mode)]).strategy)
    return make_plan(strategy, net, OptimConfig().epochs).num_trainable


def line(row: Row) -> str:
    """A row of the table in Markdown."""
    first, last = row.stages[0], row.stages[-1]
    stages = f"{len(row.stages)}: `{first}` .. `{last}`"
    million = [f"{number / 1e6:.1f}" for number in (row.parameters, row.trained["partial"])]
    return (
        f"| {row.name} | {stages} | `{row.default}` | {million[0]} | {million[1]} | {row.image_size} | {row.min_size} |"
    )


HEAD = """\
# Backbones

`--backbone NAME` takes torchvision's classifiers, all of them; `timm:NAME`; `efficientnet_lite0` (weights without a
download, extra `demo`); `cnn` (from scratch, no weights); and what plugins bring ([plugins](plugins/index.md)).

Stages are found by tracing the forward pass: a stage begins where a single tensor is all that later layers need. So every
network below is a chain of stages and a linear head, trains with any strategy, and its frozen stages are computed once and
cached (`--cache`). With `--precision fp32` a cache ends before the first stage whose output hangs on the batch that an
image comes in: matrix products do on most machines (ViT, Swin, ConvNeXt), convolutions seldom.

## Image sizes

Size, mean and std come with the weights and are written into `model.safetensors` and the record; `inat-ft eval` takes
them from there. `--image-size` takes another size, from the smallest that the weights make sense for. What cannot be
computed (five poolings of 16 pixels, windows that do not tile the image) is refused before training. Position embeddings
of vision transformers are resampled to the size asked for.

`--eval-image-size` is for validation and test alone (FixRes, Touvron et al. 2019: after random crops in training, objects
look smaller in a test image of the same size, and a larger one gains accuracy). On a run that is there,
`inat-ft eval RUN --subset val --image-size 288` tries a size; choose it on validation images. A network whose position
embedding is fixed (ViT) is evaluated at the size that it was trained at.

## Weights from a file

`--weights FILE` takes a `.safetensors`, `.pth` or `.pt` file of weights by the names of the backbone; another number
of classes keeps the new head. Checkpoints of training scripts are understood: weights under `state_dict`,
`model_state_dict` or `model` (torchvision's references with their `args`, timm, Lightning), and before these the
averaged ones under `state_dict_ema` or `model_ema`, which timm and torchvision evaluate. One prefix before the names
of the network (`module.`, `model.`, `net.`, or any other, alone or several together) and the wrappers of
`torch.compile` and FSDP are removed; tensors without that prefix, such as a loss, are left out.

No code from a file is run: besides tensors and plain values only `argparse.Namespace` is read. A file with other
Python objects, a whole module or a TorchScript program is refused; save the weights alone there:
`torch.save(model.state_dict(), "weights.pth")`. So are weights that are integers, complex, quantized, sparse, without
values (meta), or not finite. Half precision is converted.

## timm

    pip install 'inat-ft[timm]'
    inat-ft train --backbone timm:resnet10t
    inat-ft train --backbone timm:vit_small_patch16_224.dino --image-size 320

A tag after the dot names the weights. They are taken from the Hugging Face cache, else from torch's download folder, else
fetched. Of the 1,371 names of timm 1.0.31, 1,275 are chains. Distilled ones with two heads (levit, efficientformer,
repvit, swiftformer, volo) and those whose forward pass branches on its values or shapes (crossvit, twins, SAM, CLIP's
ResNets) are refused with the reason.

## torchvision

Two are not quite torchvision's: a SqueezeNet ends with the mean over the image and a Linear instead of a convolution, and
GoogLeNet and Inception have no auxiliary outputs; their input is scaled as torchvision does inside them. Every other
`model.safetensors` loads into torchvision's own model of as many classes (MNASNet wants its version told first:
`state._metadata = {"": {"version": 2}}`).

Parameters in millions, with the 10-class head: all, and those that `--mode partial` trains from its default stage on.

| name | stages | default of `--unfreeze-from` | all | partial | image size | smallest |
|---|---|---|---|---|---|---|
"""

if __name__ == "__main__":
    print(HEAD + "\n".join(line(examine(name)) for name in NAMES))
