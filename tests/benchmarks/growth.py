"""Seconds and memory against the number of images, classes, runs and epochs. Everything is generated, without decoding.

    python -m tests.benchmarks.growth [--only images classes runs epochs] [--most 1000000]

Each row is measured in a process of its own: its processor time, and its peak memory above that of the imports.

images: a manifest is split, written and read; the index of a feature cache is written, searched and read; one epoch of a head
on features in memory. classes: predictions and their metrics and comparison. runs: `inat-ft runs` on folders with records.
epochs: a training plan is made and asked for each epoch, and the history of a run is written.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.reporting import hardware, report

FEATURES = 64
"""Numbers per image in a feature cache: a tenth to a thirtieth of a usual network, so that a million rows fit on any disk."""


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def images(number: int, folder: Path) -> dict[str, Callable[[], object]]:
    import numpy as np
    import torch

    from inat_ft.cache.array_store import open_store
    from inat_ft.data.manifest import read_manifest, write_manifest
    from inat_ft.data.sources.base import ImageList
    from inat_ft.data.split import SplitOptions, make_manifest
    from inat_ft.images.scan import Scan

    listed = ImageList(folder, "class folders")
    for place in range(number):
        listed.add(f"class{place % 100:03d}/{place:08d}.jpg", f"class{place % 100:03d}")
    hashes = [f"{place * 2654435761 % 2**64:064x}" for place in range(number)]
    rows = np.zeros((1024, FEATURES), np.float32)
    store, file = open_store(folder, "prefix", {}, (FEATURES,), "f4"), folder / "m.csv"

    def split() -> None:
        scanned = Scan(hashes, [None] * number)
        write_manifest(make_manifest(listed, scanned, SplitOptions(near=False, test_fraction=0.1), file)[0])

    def fill() -> None:
        def blocks(missing):
            return (rows[: len(missing) - at] for at in range(0, len(missing), 1024))

        store.ensure(hashes, blocks, lambda done, total: None)

    def epoch() -> None:
        features, labels = torch.from_numpy(np.array(store.read(hashes)[0])), torch.arange(number) % 100
        head = torch.nn.Linear(FEATURES, 100)
        optimizer = torch.optim.Adam(head.parameters(), fused=True)
        for chosen in torch.split(torch.randperm(number), 64):
            torch.nn.functional.cross_entropy(head(features[chosen]), labels[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()

    return {
        "split and write": split,
        "read the manifest": lambda: read_manifest(file),
        "fill a feature cache": fill,
        "find the rows": lambda: store.read(hashes),
        "one epoch of a head": epoch,
    }


def classes(number: int, folder: Path) -> dict[str, Callable[[], object]]:
    import numpy as np

    from inat_ft.evaluation.evaluate import score
    from inat_ft.evaluation.predictions import confusion, from_probabilities, read_predictions, write_predictions

    rng, count = np.random.default_rng(0), 2_000
    true = rng.integers(0, number, count)
    probabilities = np.full((count, number), 0.5 / number)
    probabilities[np.arange(count), np.where(rng.random(count) < 0.7, true, 0)] += 0.5
    listed = tuple(f"class{place:05d}" for place in range(number))
    paths, hashes = [f"{place}.jpg" for place in range(count)], [f"{place:064x}" for place in range(count)]
    predictions = from_probabilities(listed, paths, hashes, true, probabilities)
    file = folder / "predictions.csv"
    return {
        "write 2,000 predictions": lambda: write_predictions(file, predictions),
        "read them": lambda: read_predictions(file),
        "metrics with intervals": lambda: score(predictions),
        "confusion matrix": lambda: confusion(predictions),
    }


def runs(number: int, folder: Path) -> dict[str, Callable[[], object]]:
    import contextlib
    import io

    from inat_ft.cli.main import app
    from inat_ft.records import Epoch, RunRecord, write_record

    history = [Epoch(epoch=n, train_loss=1, train_accuracy=0.5, val_accuracy=0.5, lr=1e-3, seconds=1) for n in (1, 2)]
    for place in range(number):
        directory = folder / f"run{place:05d}"
        directory.mkdir()
        record = RunRecord(
            name=directory.name, created="2026-01-01T00:00:00+00:00", classes=["a", "b"], history=history
        )
        write_record(record.model_copy(update={"val_accuracy": 0.5, "best_epoch": 1}), directory / "record.json")

    def listed() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            app(["runs", "--runs-dir", str(folder)], standalone_mode=False)

    return {"inat-ft runs": listed}


def epochs(number: int, folder: Path) -> dict[str, Callable[[], object]]:
    import torch
    from inat_ft_strategies.schedules import Gradual

    from inat_ft.config import ModelConfig
    from inat_ft.engine.plan import make_plan
    from inat_ft.models.build import build_net
    from inat_ft.strategies.stages import Full

    net = build_net(ModelConfig(backbone="resnet18"), 10, 64, 0)
    torch.manual_seed(0)

    def plan(strategy: object) -> None:
        made = make_plan(strategy, net, number)
        for epoch in range(number):
            made.epochs_until_thaw(epoch)
            made.last_trained_epoch(made.frozen_prefix(epoch), epoch)
            made.starts_phase(epoch)

    return {"plan of full": lambda: plan(Full()), "plan of gradual": lambda: plan(Gradual())}


CASES: dict[str, tuple[Callable[[int, Path], dict[str, Callable[[], object]]], tuple[int, ...]]] = {
    "images": (images, (1_000, 10_000, 100_000, 1_000_000)),
    "classes": (classes, (2, 100, 1_000, 10_000)),
    "runs": (runs, (10, 100, 1_000)),
    "epochs": (epochs, (10, 100, 1_000, 10_000)),
}


def measure(case: str, number: int) -> None:
    """Measure one row in this process, and print it as JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        parts = CASES[case][0](number, Path(temporary))
        before, found = peak_mib(), dict[str, float]()
        for name, part in parts.items():
            started = time.process_time()
            part()
            found[name] = round(time.process_time() - started, 3)
        print(json.dumps({"case": case, "number": number, **found, "mib": round(peak_mib() - before)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "NUMBER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure[0], int(chosen.measure[1]))
        return
    print(hardware(), flush=True)
    rows = []
    for case in chosen.only:
        for number in CASES[case][1]:
            if number <= chosen.most:
                command = [sys.executable, "-m", "tests.benchmarks.growth", "--measure", case, str(number)]
                ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(ran.stdout.splitlines()[-1]))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    report(rows=rows)


if __name__ == "__main__":
    main()
