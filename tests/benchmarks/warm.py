"""A head run of 5 epochs on cached features, as a whole process: of this version and of another one, interleaved.

    python -m tests.benchmarks.warm [--images 600] [--rounds 7] [--other FOLDER]

FOLDER is a checkout of another version, such as a git worktree. ResNet50 at 224 x 224 with weights from a file, as after a
download. Processor time is the sum over all threads; on a machine with other work it varies less than the elapsed time.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from tests.benchmarks.pictures import make_pictures, write_csv
from tests.benchmarks.reporting import environment, hardware, report

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--quiet", "--mode", "head", "--weights", "weights.safetensors", "--epochs", "5", "--patience", "0")


def run(version: Path, folder: Path, *words: str) -> tuple[float, float]:
    """Return the processor and elapsed seconds of a command."""
    command = [sys.executable, "-m", "inat_ft", *words]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment(version), check=True, stdout=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, elapsed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--other", type=Path, help="checkout of another version")
    chosen = parser.parse_args()
    versions = {"this version": ROOT} | ({"other version": chosen.other.resolve()} if chosen.other else {})
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in versions}
    print(f"{hardware()}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder / "pictures", chosen.images)
        write_csv(folder / "pictures")
        torch.manual_seed(0)
        save_file(resnet50().state_dict(), folder / "weights.safetensors")
        run(ROOT, folder, "split", "pictures/list.csv", "--no-near", "--quiet")
        for number, version in enumerate(versions.values()):
            run(version, folder, *TRAIN, "--cache-dir", f"cache{number}")
        for _ in range(chosen.rounds):
            for number, (name, version) in enumerate(versions.items()):
                times[name].append(run(version, folder, *TRAIN, "--cache-dir", f"cache{number}"))
    rows = {}
    for name, pairs in times.items():
        processor, elapsed = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:14} processor {processor:.2f} s, elapsed {elapsed:.2f} s, least {min(e for _, e in pairs):.2f} s")
        rows[name] = {"processor_s": round(processor, 2), "elapsed_s": round(elapsed, 2)}
    report(images=chosen.images, rounds=chosen.rounds, **rows)


if __name__ == "__main__":
    main()
