"""inat-ft against a plain loop, an expert's loop and the peers: whole processes, interleaved, on generated photographs.

    python -m tests.benchmarks [--quick] [--images N] [--only head full ...] [--json FILE] [--picture FILE]

The peers, such as the Hugging Face Trainer (peers.py), are measured if they are installed: pip install 'inat-ft[bench]'.

All are separate processes, and everything counts: imports, decoding, caching, validation. The time of the plain loop for
many epochs is the overhead of its process plus the median of its measured epochs times the number of epochs; the sweep has
165 epochs. ResNet50 with random weights at 224 x 224, batches of 64, on 600 JPEGs of 800 x 600. inat-ft computes in
bfloat16 where the hardware supports it (--precision bf16): random weights amplify rounding, so `auto` would not use it here.
`auto` and `fp32` are measured as well.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from inat_ft_figures.figures import BLUE, GREEN, GREY, ORANGE, logarithmic, new_figure, plotting, save

from tests.benchmarks.expert import best_dtype
from tests.benchmarks.peers import PACKAGES
from tests.benchmarks.pictures import make_pictures, write_csv
from tests.benchmarks.reporting import environment, hardware, report

ROOT = Path(__file__).parents[2]
EPOCHS = 5
KIB_PER_MIB = 1024
FASTEST = (
    "bf16" if best_dtype(torch.device("cuda" if torch.cuda.is_available() else "cpu")) is torch.bfloat16 else "auto"
)
SWEEP_EPOCHS = 165
"""Of the 22 runs together, half of which have 5 and half 10."""


class Cost(NamedTuple):
    """What a process took: its time, and its peak memory without that of its worker processes."""

    seconds: float
    memory_mib: float

    @classmethod
    def median(cls, costs: "Sequence[Cost]") -> "Cost":
        return cls(*map(statistics.median, zip(*costs, strict=True)))


def timed(command: list[str], folder: Path) -> tuple[Cost, str]:
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        ran = subprocess.Popen(command, cwd=folder, env=environment(), stdout=out, stderr=err)
        _, status, usage = os.wait4(ran.pid, 0)
        seconds, ran.returncode = time.perf_counter() - started, os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        if ran.returncode:
            raise SystemExit(f"{' '.join(command)}\n{err.read()}")
        return Cost(seconds, usage.ru_maxrss / KIB_PER_MIB), out.read()


def plain_loop(folder: Path, mode: str, epochs: int) -> tuple[Cost, float]:
    """Return the cost of the plain loop without its epochs, and the median seconds of an epoch."""
    whole, out = timed([sys.executable, "-m", "tests.benchmarks.plain", "pictures", mode, str(epochs)], folder)
    seconds = json.loads(out)["seconds"]
    return whole._replace(seconds=whole.seconds - sum(seconds)), statistics.median(seconds)


def process(which: str, folder: Path, mode: str) -> Cost:
    """Return the cost of a whole process. which: `expert`, or `peers` and the name of the library."""
    module, *name = which.split()
    return timed([sys.executable, "-m", f"tests.benchmarks.{module}", *name, "pictures", mode, str(EPOCHS)], folder)[0]


def ours(folder: Path, cache: str, *words: str, precision: str = FASTEST) -> Cost:
    command = [
        sys.executable,
        "-m",
        "inat_ft",
        "train",
        "--quiet",
        "--weights",
        "none",
        "--patience",
        "0",
        "--precision",
        precision,
    ]
    return timed([*command, "--epochs", str(EPOCHS), "--cache-dir", cache, *words], folder)[0]


def sweep(folder: Path) -> Cost:
    """The built-in sweep from cold, without early stopping."""
    settings = ("model.weights=none", f"compute.precision={FASTEST}", "stop.patience=0")
    create = [
        sys.executable,
        "-m",
        "inat_ft",
        "sweep",
        "create",
        *(word for each in settings for word in ("--set", each)),
    ]
    run = [sys.executable, "-m", "inat_ft", "sweep", "run", "--quiet", "--cache-dir", "cache-sweep"]
    costs = [timed(command, folder)[0] for command in (create, run)]
    return Cost(sum(cost.seconds for cost in costs), max(cost.memory_mib for cost in costs))


CASES = {
    "head": ("head", ("--mode", "head")),
    "partial from layer4": ("layer4", ("--mode", "partial", "--unfreeze-from", "layer4")),
    "partial from layer3": ("layer3", ("--mode", "partial", "--unfreeze-from", "layer3")),
    "full": ("full", ("--mode", "full")),
}


def measure(
    folder: Path, images: int, only: list[str], peers: bool, plain_epochs: int, rounds: int
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def add(case: str, how: str, cost: Cost, baseline: float, passes: int = EPOCHS) -> None:
        rows.append(
            {
                "case": case,
                "ours": how,
                "seconds": round(cost.seconds, 1),
                "plain": round(baseline, 1),
                "ratio": round(baseline / cost.seconds, 1),
                "images_per_s": round(images * passes / cost.seconds, 1),
                "memory_mib": round(cost.memory_mib),
            }
        )
        print(
            f"{case:22} {how:18} {cost.seconds:8.1f} s {images * passes / cost.seconds:8.0f} images/s   "
            f"plain loop {baseline:9.1f} s   {baseline / cost.seconds:7.1f} x   {cost.memory_mib:7.0f} MiB",
            flush=True,
        )

    for case in only:
        mode, words = CASES[case]
        epochs, overheads, cold, warm, experts = [], [], [], [], []
        for number in range(rounds):  # interleaved, so that a slow minute of the machine affects all of them
            overhead, epoch = plain_loop(folder, mode, plain_epochs)
            epochs.append(epoch)
            overheads.append(overhead)
            experts.append(process("expert", folder, mode))
            cold.append(ours(folder, f"cache-{mode}-{number}", *words))
            warm.append(ours(folder, f"cache-{mode}-{number}", *words))
        around, epoch = Cost.median(overheads), statistics.median(epochs)
        plain = around._replace(seconds=around.seconds + EPOCHS * epoch)
        baseline = plain.seconds
        add(case, f"cold, {FASTEST}", Cost.median(cold), baseline)
        add(case, f"warm, {FASTEST}", Cost.median(warm), baseline)
        add(case, "(plain loop)", plain, baseline)
        add(case, "(expert's loop)", Cost.median(experts), baseline)
        for which, package in PACKAGES.items() if peers else ():
            if find_spec(package) and (which != "timm" or mode == "full"):
                add(case, f"({which})", process(f"peers {which}", folder, mode), baseline)
        if case == "head":
            add(case, "cold, auto", ours(folder, "cache-auto", *words, precision="auto"), baseline)
            add(case, "cold, fp32 exact", ours(folder, "cache-fp32", *words, precision="fp32"), baseline)
            whole = around.seconds + SWEEP_EPOCHS * epoch
            add("sweep of 22 runs", f"cold, {FASTEST}", sweep(folder), whole, SWEEP_EPOCHS)
    return rows


def draw(rows: list[dict[str, object]], file: Path) -> None:
    """Draw time against the number of head runs: the first run of inat-ft is cold, all others are warm."""
    head = {str(row["ours"]): float(str(row["seconds"])) for row in rows if row["case"] == "head"}
    plain_s = next(float(str(row["plain"])) for row in rows if row["case"] == "head")
    lines = {"plain loop": (plain_s, plain_s), "inat-ft": (head[f"cold, {FASTEST}"], head[f"warm, {FASTEST}"])}
    others = [name for name in head if name.startswith("(") and name != "(plain loop)"]
    lines |= {name.strip("()"): (head[name], head[name]) for name in others}
    runs = range(1, 23)
    with plotting():
        figure, axes = new_figure(6.4, 3.6)
        styles = (
            ("-", 5, GREY),
            ("-", 2, BLUE),
            ("--", 2, ORANGE),
            (":", 2, GREEN),
        )  # the lines of the peers overlap
        for (name, (first, other)), (dash, width, colour) in zip(lines.items(), styles, strict=False):
            seconds = [first + (run - 1) * other for run in runs]
            axes.plot(runs, seconds, linestyle=dash, linewidth=width, color=colour, label=name)
        axes.set(xlabel="head runs of 5 epochs, one after the other", ylabel="seconds (logarithmic)")
        axes.set_xticks([1, 5, 10, 15, 22])
        logarithmic(axes, "y")
        axes.legend(frameon=False)
    save(figure, file.with_suffix(""))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer images, one epoch of the plain loop, one round")
    parser.add_argument("--images", type=int)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, help="interleaved rounds")
    parser.add_argument("--no-peers", action="store_true", help="without other libraries")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="time against the number of head runs")
    chosen = parser.parse_args()
    images = chosen.images or (120 if chosen.quick else 600)
    rounds = chosen.rounds or (1 if chosen.quick else 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder / "pictures", images)
        write_csv(folder / "pictures")
        timed(
            [
                *(sys.executable, "-m", "inat_ft", "split", "pictures/list.csv"),
                *("--no-near", "--test-fraction", "0", "--out", "splits/p.csv"),
            ],
            folder,
        )
        print(f"{hardware()}, torch {torch.__version__}, {images} images, {EPOCHS} epochs", flush=True)
        rows = measure(folder, images, chosen.only, not chosen.no_peers, 1 if chosen.quick else 2, rounds)
    if chosen.picture:
        draw(rows, chosen.picture)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    report(images=images, epochs=EPOCHS, rows=rows)


if __name__ == "__main__":
    main()
