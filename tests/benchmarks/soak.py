"""Memory, file descriptors, epoch time and checkpoint time of long runs, at their start, in the middle and at the end.

    python -m tests.benchmarks.soak [--epochs 3000] [--full-epochs 200] [--trials 500]

One process trains the head on cached features of ResNet18, then a small CNN as a whole, then all trials of a sweep of heads
of that CNN. Weights are random, images have 32 x 32 pixels. The first, the middle and the last fifth are shown: medians for
epochs and checkpoints, and the mean for trials, since 32 of them end together; memory is the resident set at their end.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.objective import TrainingObjective
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.worker import run_worker

import inat_ft
from inat_ft.engine import checkpoint
from inat_ft.records import Epoch
from inat_ft.settings import load_config
from inat_ft.training import Directories, TrainCallbacks, train
from tests.benchmarks.reporting import hardware, report
from tests.benchmarks.sweep import make_small

SETTINGS: dict[str, Any] = {
    "data.image_size": 32,
    "model.weights": "none",
    "optim.batch_size": 64,
    "optim.lr": 1e-4,
    "stop.patience": 0,
    "compute.precision": "fp32",
    "compute.device": "cpu",
    "track.files": False,
}
FROZEN = {"model.backbone": "resnet18", "strategy.name": "head"}
WHOLE = {"model.backbone": "cnn", "model.filters": 16, "strategy.name": "full"}
TRIAL = {"model.backbone": "cnn", "model.filters": 16, "strategy.name": "head"}


@dataclass
class Samples:
    """What is measured after each epoch or trial."""

    milliseconds: list[float] = field(default_factory=list)
    checkpoint_ms: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def add(self) -> None:
        now = time.perf_counter()
        self.milliseconds.append(1e3 * (now - self._last))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory_mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.descriptors.append(len(os.listdir("/proc/self/fd")))
        self._last = time.perf_counter()

    def table(
        self, what: str, average: Callable[[Sequence[float]], float] = statistics.median
    ) -> list[dict[str, object]]:
        """Print and return a row for the first, the middle and the last fifth."""
        number = len(self.milliseconds)
        fifth, rows = number // 5, list[dict[str, object]]()
        for part, first in (("start", 0), ("middle", (number - fifth) // 2), ("end", number - fifth)):
            within = slice(first, first + fifth)
            row: dict[str, object] = {
                "part": f"{what}, {part}",
                "from": first + 1,
                "to": first + fifth,
                "ms": round(average(self.milliseconds[within]), 1),
                "memory_mib": round(self.memory_mib[within][-1]),
                "descriptors": max(self.descriptors[within]),
            }
            if self.checkpoint_ms:
                row["checkpoint_ms"] = round(statistics.median(self.checkpoint_ms[within]), 1)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
        return rows


def run(folder: Path, what: str, settings: dict[str, Any], epochs: int) -> list[dict[str, object]]:
    """Train, and measure each epoch."""
    samples, write = Samples(), checkpoint._write

    def timed_write(file: Path, content: dict[str, Any]) -> None:
        started = time.perf_counter()
        write(file, content)
        samples.checkpoint_ms.append(1e3 * (time.perf_counter() - started))

    def on_epoch(epoch: Epoch) -> None:
        samples.add()

    config = load_config(None, [*(SETTINGS | settings).items(), ("optim.epochs", epochs), ("data.split", "p.csv")])
    checkpoint._write = timed_write
    try:
        train(config, Directories(folder / "runs", folder / "cache"), TrainCallbacks(on_epoch=on_epoch))
    finally:
        checkpoint._write = write
    return samples.table(what)


def sweep(folder: Path, trials: int) -> list[dict[str, object]]:
    """Run all trials of a grid, and measure each. Those that are trained in the same steps end together."""
    parameters: dict[str, Any] = {key: {"value": value} for key, value in (SETTINGS | TRIAL).items()}
    parameters |= {"data.split": {"value": "p.csv"}, "optim.epochs": {"value": 1}}
    parameters["optim.lr"] = {"values": [1e-5 * (1 + number) for number in range(trials)]}
    metric = {"name": "val_loss", "goal": "minimize"}
    made = create(parse_spec({"method": "grid", "metric": metric, "parameters": parameters}), folder / "sweeps", "soak")
    samples = Samples()
    objective = TrainingObjective("val_loss", folder / "cache", lambda config: TrainCallbacks())
    status = run_worker(made, objective, log=lambda line: samples.add())
    complete = [trial for trial in made.trials() if trial.state == "complete"]
    if len(complete) != trials:
        raise SystemExit(f"{len(complete)} of {trials} trials are complete: {status.message}")
    return samples.table("sweep", statistics.mean)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3000, help="of the head on cached features")
    parser.add_argument("--full-epochs", type=int, default=200, help="of the whole network")
    parser.add_argument("--trials", type=int, default=500)
    chosen = parser.parse_args(arguments)
    print(f"{hardware()}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        folder = Path(temporary)
        make_small(folder / "photos", 300, 32)
        inat_ft.split("photos", out="p.csv", test_fraction=0, near=False)
        rows = run(folder, "head on cached features", FROZEN, chosen.epochs)
        rows += run(folder, "whole network", WHOLE, chosen.full_epochs)
        rows += sweep(folder, chosen.trials)
        os.chdir("/")
    report(rows=rows)


if __name__ == "__main__":
    main()
