"""Load the network of a trained classifier, or export it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from inat_ft.api.train import RunLike
from inat_ft.data.batches import ImageInput
from inat_ft.engine.device import parse_device
from inat_ft.evaluation.predict import model_file, read_model
from inat_ft.exporters import ExportResult, export_run
from inat_ft.images.decode import MAX_PIXELS, load_image
from inat_ft.images.resizing import to_square
from inat_ft.models.base import Preprocess
from inat_ft.models.build import build_classifier
from inat_ft.registry import FEATURES, get

if TYPE_CHECKING:
    from PIL.Image import Image

Precision = Literal["fp32", "bf16", "auto"]


@dataclass(frozen=True)
class Transform:
    """Turn an image into the input of a network, as in evaluation.

        inputs = transform("photo.jpg")[None]  # [1, 3, H, W]

    An image is a path or a PIL image. The result is a float32 tensor `[3, H, W]`, resized and normalized. JPEG files are
    decoded as in training; a PIL image of the same file may differ by one gray level.
    """

    preprocess: Preprocess

    def __call__(self, image: str | os.PathLike[str] | Image) -> Tensor:
        """Return the image as a tensor `[3, H, W]`. Raises DataError if the file cannot be decoded."""
        size, resizing = self.preprocess.eval_size, self.preprocess.resizing
        if isinstance(image, str | os.PathLike):
            pixels = torch.from_numpy(load_image(Path(image), size, MAX_PIXELS, resizing))
        else:
            pixels = to_square(_rgb(image), size, resizing).permute(1, 2, 0)
        normalize = ImageInput(self.preprocess.mean, self.preprocess.std)
        return normalize(pixels[None].contiguous(), torch.empty(0))[0].contiguous()


def _rgb(image: Image) -> Tensor:
    """Return a PIL image as uint8 `[3, H, W]`, upright, with transparent pixels on white."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    pixels: Tensor = pil_to_tensor(upright.convert("RGB"))
    return pixels


def load(run: RunLike, device: str | torch.device = "cpu") -> tuple[nn.Module, Transform]:
    """Load a trained network as an ordinary module, with the transform that makes its input.

        model, transform = inat_ft.load(run)
        logits = model(transform("photo.jpg")[None])  # [1, C]

    The module is the original architecture in evaluation mode: a `torchvision.models.ResNet` for a ResNet50, for example.
    It maps images `[N, 3, H, W]` float32 to logits `[N, C]` in the order of `run.classes`, and its `state_dict()` loads into
    the model of torchvision or timm with that number of classes. It has no dropout in front of the last layer.

    Args:
        run: a Run, a run folder, its record.json, or a model.safetensors.
        device: device of the module's parameters.

    Raises:
        UsageError: the run or the device does not exist.
        WeightsError: the saved weights are damaged.
    """
    saved = read_model(model_file(Path(run)))
    size = saved.preprocess.image_size
    classifier = build_classifier(saved.config, len(saved.classes), size, saved.state)
    return classifier.to(parse_device(str(device))).eval(), Transform(saved.preprocess)


def export(
    run: RunLike,
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    push_to_hub: str | None = None,
) -> ExportResult:
    """Export a trained network, with normalization and class names, and compare its output with PyTorch.

        inat_ft.export(run, "model.onnx")

    The network takes `images`, uint8 `[N, H, W, 3]`, and returns `probabilities`, float32 `[N, C]`.

    Args:
        run: a Run, a run folder, or its record.json.
        out: the file or folder to write. Default: `model` with the suffix of the format, in the run folder.
        format: name of an exporter, such as onnx or openvino. Default: the suffix of `out` decides, else onnx.
        push_to_hub: repository of the Hugging Face Hub, `ORG/NAME`, for the folder of the format hub-folder.

    Raises:
        UsageError: a package or a token is missing, or the run does not exist.
        InatFtError: the network cannot be exported, its output differs from that of PyTorch, or the upload fails.
    """
    upload = get(FEATURES, "push-to-hub").load()(push_to_hub, format) if push_to_hub is not None else None
    done = export_run(model_file(Path(run)).parent, Path(out) if out else None, "hub-folder" if upload else format)
    return replace(done, url=upload(done.file)) if upload else done
