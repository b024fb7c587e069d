"""The loop of most tutorials: ImageFolder, Pillow, float32, the whole network in every epoch, validation after each.

Run it as a separate process: python -m tests.benchmarks.plain ROOT MODE EPOCHS; it prints the seconds of each epoch as JSON.
It uses a GPU if there is one.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

WORKERS = max(2, len(os.sched_getaffinity(0)))
"""One per core, at least two."""


def unfreeze(model: nn.Module, mode: str) -> None:
    if mode == "full":
        return
    frozen = True
    for name, child in model.named_children():
        frozen = frozen and name != ("fc" if mode == "head" else mode)
        for parameter in child.parameters():
            parameter.requires_grad = not frozen


def main(root: Path, mode: str, epochs: int) -> None:
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    train, val = (datasets.ImageFolder(root / part, transform) for part in ("train", "val"))
    model = models.resnet50(weights=None)
    model.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(model.fc.in_features, 10))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    unfreeze(model, mode)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    loss_of = nn.CrossEntropyLoss()
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for images, labels in DataLoader(train, 64, shuffle=True, num_workers=WORKERS):
            x, y = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
        model.eval()
        with torch.no_grad():
            for images, labels in DataLoader(val, 64, num_workers=WORKERS):
                x, y = images.to(device), labels.to(device)
                (model(x).argmax(1) == y).sum().item()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "images": len(train) + len(val)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
