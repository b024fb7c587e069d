"""The same training with other libraries, as their documentation shows: their loops, and validation after each epoch.

Run it as a separate process: python -m tests.benchmarks.peers NAME ROOT MODE EPOCHS; it prints the seconds. NAME: trainer
(the Hugging Face Trainer), fastai, lightning, ultralytics or timm. MODE: head, layer3, layer4 or full.

Layers are frozen with requires_grad, which leaves their BatchNorm layers in training mode, as the libraries do. timm has no
option to freeze layers, so it only has `full`, with its loader and its optimizer. The Trainer, Lightning and timm compute in
bfloat16 where the hardware supports it; fastai and ultralytics have this option for GPUs only. ultralytics trains its own
ResNet50, which has a convolution of 1280 channels before the last layer, with its usual augmentation.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torchvision import datasets, models, transforms

from tests.benchmarks.expert import best_dtype
from tests.benchmarks.plain import WORKERS, unfreeze

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = best_dtype(DEVICE) is torch.bfloat16
PACKAGES = {
    "trainer": "transformers",
    "fastai": "fastai",
    "lightning": "lightning",
    "ultralytics": "ultralytics",
    "timm": "timm",
}
"""The package that each of them needs."""


def network(mode: str) -> nn.Module:
    model = models.resnet50(weights=None)
    model.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(model.fc.in_features, 10))
    unfreeze(model, mode)
    return model


def subsets(root: Path) -> list[datasets.ImageFolder]:
    """Return the images for training and for validation, with the usual transforms of torchvision."""
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return [datasets.ImageFolder(root / part, transform) for part in ("train", "val")]


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

    def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        images, labels = zip(*rows, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

    train, val = subsets(root)
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
            bf16=BF16,
            use_cpu=DEVICE.type == "cpu",
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


def lightning(root: Path, mode: str, epochs: int) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(mode)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: list[torch.Tensor]) -> None:
            logits = self.model(batch[0])
            self.log_dict(
                {
                    "val_loss": nn.functional.cross_entropy(logits, batch[1]),
                    "val_accuracy": (logits.argmax(1) == batch[1]).float().mean(),
                }
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=1e-4)

    train, val = subsets(root)
    options = {"batch_size": 64, "num_workers": WORKERS, "persistent_workers": True}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            precision="bf16-mixed" if BF16 else "32-true",
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), DataLoader(train, shuffle=True, **options), DataLoader(val, **options))


def ultralytics(root: Path, mode: str, epochs: int) -> None:
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "data": str(root),
            "project": folder,
            "epochs": epochs,
            "imgsz": 224,
            "batch": 64,
            "workers": WORKERS,
        }
        settings |= {"pretrained": False, "optimizer": "Adam", "lr0": 1e-4, "plots": False, "verbose": False}
        num_frozen = {"head": 5, "layer4": 4, "layer3": 3, "full": 0}[mode]
        YOLO("yolov8-cls-resnet50.yaml", task="classify").train(freeze=num_frozen, **settings)


def timm(root: Path, mode: str, epochs: int) -> None:
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, accuracy

    if mode != "full":
        raise SystemExit(f"timm has no option to freeze layers, so it cannot train {mode}")
    options = {"input_size": (3, 224, 224), "batch_size": 64, "use_prefetcher": False, "num_workers": WORKERS}
    options |= {"persistent_workers": True, "device": DEVICE}
    train, val = (
        create_loader(
            create_dataset("", root / part), is_training=part == "train", no_aug=True, crop_pct=1.0, **options
        )
        for part in ("train", "val")
    )
    model = network(mode).to(DEVICE, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adam", lr=1e-4, weight_decay=0.0)
    cast = torch.autocast(DEVICE.type, torch.bfloat16) if BF16 else contextlib.nullcontext()
    for _ in range(epochs):
        losses, top1 = AverageMeter(), AverageMeter()
        model.train()
        for images, classes in train:
            inputs, labels = images.to(DEVICE, memory_format=torch.channels_last), classes.to(DEVICE)
            with cast:
                loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(labels))
        model.eval()
        with torch.no_grad():
            for images, classes in val:
                inputs, labels = images.to(DEVICE, memory_format=torch.channels_last), classes.to(DEVICE)
                with cast:
                    logits = model(inputs)
                top1.update(accuracy(logits, labels)[0].item(), len(labels))


if __name__ == "__main__":
    started = time.perf_counter()
    run = {"trainer": trainer, "fastai": fastai, "lightning": lightning, "ultralytics": ultralytics, "timm": timm}
    run[sys.argv[1]](Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    print(json.dumps({"seconds": [time.perf_counter() - started]}))
