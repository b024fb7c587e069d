"""`inat-ft tune` against the best single strategy of docs/strategies.md, on few real images.

    python -m tests.benchmarks.tune [--budget 3m] [--each 100] [--seeds 0 1 2] [--single full]

The images, the network and the image size are those of tests/benchmarks/strategies.py. `tune` chooses everything else in
the given time. The single strategy is trained as on that page: learning rates 1e-4, 1e-3 and 1e-2, of which the best
validation accuracy chooses, 5 epochs, batches of 32. The accuracy is that on the same 359 test images, which `tune` does
not use.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inat_ft_datasets.digits import write_digits

import inat_ft
from inat_ft.engine.device import release_memory
from tests.benchmarks.reporting import report
from tests.benchmarks.strategies import measure, split


def tune(manifest: Path, work: Path, budget: str, seed: int) -> dict[str, object]:
    out = work / f"tune-{seed}"
    started = time.perf_counter()
    words = ["tune", str(manifest), "--budget", budget, "--backbone", "efficientnet_lite0", "--out", str(out), "--seed"]
    more = ["--set", "data.image_size=32", "--runs-dir", str(out / "final"), "--cache-dir", str(work / f"cache-{seed}")]
    subprocess.run([sys.executable, "-m", "inat_ft", *words, str(seed), *more], check=True)
    seconds = time.perf_counter() - started
    result = inat_ft.tune(None, budget, out=out)
    release_memory()
    found = inat_ft.evaluate(result.run)
    chosen = result.details["chosen"]
    print(f"draw {seed}: {result.summary}", flush=True)
    return {"seed": seed, "accuracy": found.accuracy, "seconds": round(seconds, 1), "chosen": chosen}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--single", default="full")
    chosen = parser.parse_args()
    tuned, single = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        digits = write_digits(work / "digits")
        for seed in chosen.seeds:
            manifest = split(digits, work, chosen.each, seed)
            tuned.append(tune(manifest, work, chosen.budget, seed))
            print(tuned[-1], flush=True)
            if chosen.single:
                single.append(measure(manifest, work, chosen.single, seed, 5))
                print(single[-1], flush=True)
    report(
        tune=statistics.mean(row["accuracy"] for row in tuned),
        single=statistics.mean(row["accuracy"] for row in single) if single else None,
        runs=tuned,
        singles=single,
    )


if __name__ == "__main__":
    main()
