"""The same head and full tuning as people do it with the Hugging Face Trainer and with fastai.

Run as a process of its own: python -m tests.benchmarks.peers trainer|fastai ROOT head|full EPOCHS; prints seconds as JSON.
Both as their own documents show it: their loaders, their defaults of precision (float32), validation after each epoch.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torchvision import datasets, models, transforms

from tests.benchmarks.plain import WORKERS


def network(mode: str) -> nn.Module:
    model = models.resnet50(weights=None)
    model.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(model.fc.in_features, 10))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = mode == "full" or name.startswith("fc")
    return model


class Wrapped(nn.Module):
    """A classifier in the form that the Trainer takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(root: Path, mode: str, epochs: int) -> None:
    from transformers import Trainer, TrainingArguments

    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        images, labels = zip(*rows, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

    train, val = (datasets.ImageFolder(root / part, transform) for part in ("train", "val"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=64,
            learning_rate=1e-4,
            eval_strategy="epoch",
            save_strategy="no",
            dataloader_num_workers=WORKERS,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        Trainer(Wrapped(network(mode)), arguments, data_collator=collate, train_dataset=train, eval_dataset=val).train()


def fastai(root: Path, mode: str, epochs: int) -> None:
    from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize, ResizeMethod, accuracy, imagenet_stats

    loaders = ImageDataLoaders.from_folder(
        root,
        train="train",
        valid="val",
        bs=64,
        num_workers=WORKERS,
        item_tfms=Resize(224, method=ResizeMethod.Squish),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    learner = Learner(loaders, network(mode), loss_func=nn.CrossEntropyLoss(), metrics=accuracy)
    with learner.no_bar():
        learner.fit(epochs, 1e-4)


if __name__ == "__main__":
    started = time.perf_counter()
    {"trainer": trainer, "fastai": fastai}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    print(json.dumps({"seconds": [time.perf_counter() - started]}))
