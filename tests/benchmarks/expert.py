"""An expert's training loop in plain PyTorch: what an experienced user writes without a cache.

Autocast in the best precision of the hardware, channels_last, a fused optimizer, decoding with torchvision.io in worker
processes that stay alive, normalization on the device, frozen layers in evaluation mode and without gradients, and
torch.compile on a GPU (--compile on a CPU).

Run it as a separate process: python -m tests.benchmarks.expert ROOT MODE EPOCHS; it prints the seconds of each epoch as JSON.
"""

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as V

from tests.benchmarks.plain import WORKERS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")


def load(path: str) -> Tensor:
    """Decode one image to uint8 `[3, 224, 224]`."""
    return V.resize(decode_image(path, ImageReadMode.RGB), [224, 224], antialias=True)


def best_dtype(device: torch.device) -> torch.dtype:
    """Return the fastest dtype that the hardware computes natively."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    if device.type == "cpu" and os.environ.get("ATEN_CPU_CAPABILITY") != "avx2":  # set to measure as on a laptop
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32
    return torch.float32


class Classifier(nn.Module):
    """ResNet50 in a frozen and a trainable part."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        network = models.resnet50(weights=None)
        first = {"head": len(STAGES), "full": 0}.get(mode, STAGES.index(mode) if mode in STAGES else 0)
        self.frozen = nn.Sequential(*(getattr(network, name) for name in STAGES[:first])).requires_grad_(False)
        self.trained = nn.Sequential(*(getattr(network, name) for name in STAGES[first:]))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(network.fc.in_features, 10))

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.frozen(images)
        return self.head(self.trained(features))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("mode", choices=("head", "layer3", "layer4", "full"))
    parser.add_argument("epochs", type=int)
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    dtype = best_dtype(device)
    train, val = (datasets.ImageFolder(chosen.root / part, loader=load) for part in ("train", "val"))
    options = {"num_workers": WORKERS, "persistent_workers": True, "pin_memory": device.type == "cuda"}
    train_loader = DataLoader(train, 64, shuffle=True, **options)
    val_loader = DataLoader(val, 64, **options)
    model = Classifier(chosen.mode).to(device).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if chosen.compile or device.type == "cuda" else model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) * 255 for each in (MEAN, STD))

    def logits(images: Tensor) -> Tensor:
        images = images.to(device, non_blocking=True).to(memory_format=torch.channels_last)
        cast = torch.autocast(device.type, dtype) if dtype is not torch.float32 else contextlib.nullcontext()
        with cast:
            return forward((images.float() - mean) / std)

    seconds = []
    for _ in range(chosen.epochs):
        started = time.perf_counter()
        model.train()
        for images, labels in train_loader:
            loss = F.cross_entropy(logits(images).float(), labels.to(device, non_blocking=True))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        model.eval()
        correct = torch.zeros((), device=device)
        with torch.no_grad():
            for images, labels in val_loader:
                correct += (logits(images).argmax(1) == labels.to(device, non_blocking=True)).sum()
        correct.item()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "images": len(train) + len(val), "dtype": str(dtype).removeprefix("torch.")}))


if __name__ == "__main__":
    main()
