"""The commands of a small project, which a test stops at any instant.

The fork server of the test imports this module, so that a child starts at once.
"""

import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torchvision.models  # noqa: F401 - imported before the fork

import inat_ft.evaluation.evaluate
import inat_ft.exporters
import inat_ft.training  # noqa: F401 - as above
from inat_ft.cli import main

EXACT = (
    *("--split", "splits/photos.csv", "--name", "r", "--patience", "0", "--batch-size", "16", "--image-size", "32"),
    *("--lr", "1e-3", "--precision", "fp32", "--device", "cpu", "--augment", "flip", "--dropout", "0.2"),
)
NETWORKS = {
    "cnn": ("--backbone", "cnn", "--set", "model.filters=16", "--epochs", "12"),
    "frozen": ("--backbone", "resnet18", "--weights", "none", "--mode", "head", "--epochs", "16"),
}


FROZEN = ("--backbone", "resnet18", "--set", "model.weights=none", "--set", "data.image_size=32")
COMMANDS = {
    "split": ("split", "photos", "--test-fraction", "0.25"),
    "eval": ("eval", "runs/r"),
    "export": ("export", "runs/r", "--format", "torch-export"),
    "export-folder": ("export", "runs/r", "--format", "hub-folder", "--out", "exported"),
    "predict": ("predict", "runs/r", "photos", "--out", "predictions.csv"),
    "curve": ("learning-curve", "--split", "splits/photos.csv", *FROZEN, "--draws", "2"),
    "audit": ("audit", "splits/photos.csv", *FROZEN),
    "fetch": ("fetch", "digits", "--to", "data"),
    "clear": ("cache", "--clear"),
}


def run_commands(folder: str, commands: Sequence[str], ready: Connection) -> None:
    """Run commands, and continue where an earlier process was stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, main._stop)
    try:
        os.chdir(folder)
        os.environ["INAT_FT_CACHE_DIR"] = "cache"
        sys.stdout = sys.stderr = Path("log.txt").open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - to the end
        ready.send(os.getpid())
        for command in commands:
            _run(command)
    except KeyboardInterrupt:  # between two commands
        sys.exit(128 + main._stopped_by)


def _run(command: str) -> None:
    run = Path("runs/r")
    if command in COMMANDS:
        _call(*COMMANDS[command])
    elif command == "folds":
        is_begun = (run / "config.yaml").exists()
        _call(
            "train",
            *(("--resume", "runs/r") if is_begun else (*EXACT, *NETWORKS["cnn"], "--epochs", "3", "--folds", "3")),
        )
    elif command == "delete":
        _call("runs", "delete", "r", "--yes", allowed=0 if run.exists() else 2)  # 2: it was deleted before the stop
    else:
        resume = any(run.glob("resume*.pt"))
        _call("train", *(("--resume", "runs/r") if resume else (*EXACT, *NETWORKS[command])))


def _call(*words: str, allowed: int = 0) -> None:
    sys.argv = ["inat-ft", *words]
    try:
        main.run()
    except SystemExit as end:
        if end.code not in (None, 0, allowed):
            raise
