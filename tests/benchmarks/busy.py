"""Epochs on an idle and on a busy machine, with and without spinning OpenMP threads.

    python -m tests.benchmarks.busy [--rounds 2] [--only cnn resnet50] [--threads N]

Training of all layers: the small CNN on images of 32 x 32 pixels, and ResNet50 on images of 64 x 64. The machine is idle, or
another process computes on each core, which leaves half of the machine. Each epoch is then expected to take twice as long.
Spinning is GNU OpenMP's default of 300,000 turns; inat-ft limits it to 1,000. Variants are interleaved; the figures are the
medians of all epochs but the first of each run, and the CPU seconds of whole processes.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.pictures import make_pictures, write_csv
from tests.benchmarks.reporting import environment, report

ROOT = Path(__file__).parents[2]
NETWORKS = {"cnn": ("32", 4), "resnet50": ("64", 3)}
"""Image size and number of epochs."""
VARIANTS = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "limited": {}}
SHARE = 2
"""With another process on each core, a fair share is half of the machine."""


@contextmanager
def busy(number: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def train(folder: Path, network: str, variant: str, threads: str) -> tuple[list[float], float]:
    """Return the seconds of the epochs but the first, and the CPU seconds of the process."""
    size, epochs = NETWORKS[network]
    words = f"train --quiet --json --mode full --weights none --patience 0 --precision fp32 --backbone {network}"
    more = ["--image-size", size, "--epochs", str(epochs), "--cache-dir", f"cache-{network}"]
    variables = {name: value for name, value in environment().items() if not name.startswith(("OMP_", "GOMP_"))}
    variables |= VARIANTS[variant] | ({"OMP_NUM_THREADS": threads} if threads else {})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-m", "inat_ft", *words.split(), *more],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [epoch["seconds"] for epoch in json.loads(ran.stdout)["history"][1:]], used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", default="", help="OMP_NUM_THREADS")
    chosen = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder / "pictures", chosen.images)
        write_csv(folder / "pictures")
        split = [sys.executable, "-m", "inat_ft", "split", "pictures/list.csv", "--no-near", "--test-fraction", "0"]
        subprocess.run(split, cwd=folder, check=True, env=environment(), capture_output=True)
        print(f"{cores} cores; load average before: {os.getloadavg()[0]:.1f}", flush=True)
        for network in chosen.only:
            found: dict[tuple[str, int], list[tuple[list[float], float]]] = {}
            for _ in range(chosen.rounds):
                for others in (0, cores):
                    for variant in VARIANTS:
                        with busy(others):
                            ran = train(folder, network, variant, chosen.threads)
                        found.setdefault((variant, others), []).append(ran)
            for variant in VARIANTS:
                idle, loaded = (statistics.median(s for run, _ in found[variant, n] for s in run) for n in (0, cores))
                used = [statistics.median(cpu for _, cpu in found[variant, n]) for n in (0, cores)]
                rows.append(
                    {
                        "network": network,
                        "variant": variant,
                        "idle_s": round(idle, 3),
                        "busy_s": round(loaded, 3),
                        "of_share": round(loaded / idle / SHARE, 2),
                        "cpu_s": [round(each, 1) for each in used],
                    }
                )
                print(
                    f"{network:9} {variant:9} epoch: idle {idle:7.2f} s, busy {loaded:7.2f} s = "
                    f"{loaded / idle / SHARE:5.1f} x its share; CPU seconds {used[0]:.0f} and {used[1]:.0f}",
                    flush=True,
                )
    report(cores=cores, images=chosen.images, rows=rows)


if __name__ == "__main__":
    main()
