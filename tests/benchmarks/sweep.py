"""The built-in sweep of 22 runs on many images, and the memory of a head run on them.

    python -m tests.benchmarks.sweep [--images 10000] [--image-size 224]

ResNet50 with random weights. A first run extracts the features; its time is printed separately. The 22 runs use the
cached features.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.reporting import environment, report

ROOT = Path(__file__).parents[2]


def make_small(root: Path, number: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for place in range(number):
        file = root / f"class{place % 10}" / f"{place:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR).save(file, quality=80)


def run(folder: Path, *words: str) -> tuple[float, str]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "inat_ft", *words]
    ran = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return time.perf_counter() - started, ran.stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=224)
    chosen = parser.parse_args()
    number, size = chosen.images, chosen.image_size
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_small(folder / "photos", number, size)
        run(folder, "split", "photos", "--no-near", "--test-fraction", "0", "--quiet")
        common = [
            "--mode",
            "head",
            "--weights",
            "none",
            "--image-size",
            str(size),
            "--precision",
            "bf16",
            "--cache-dir",
            "cache",
            "--json",
        ]
        first, out = run(folder, "train", *common, "--epochs", "1")
        memory = json.loads(out)["peak_memory_mib"]
        print(
            f"{number:,} images: first head run, features extracted, {first:.1f} s, {memory:,.0f} MiB at most",
            flush=True,
        )
        warm, out = run(folder, "train", *common, "--epochs", "5")
        print(
            f"head run of 5 epochs on cached features: {warm:.1f} s, {json.loads(out)['peak_memory_mib']:,.0f} MiB at most"
        )
        settings = ["model.weights=none", f"data.image_size={size}", "compute.precision=bf16"]
        run(folder, "sweep", "create", *(word for each in settings for word in ("--set", each)))
        swept, _ = run(folder, "sweep", "run", "--cache-dir", "cache", "--quiet")
        print(f"22 runs of the sweep: {swept:.1f} s")
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"no process held more than {children:,.0f} MiB")
    report(
        images=number,
        first_s=round(first, 1),
        first_peak_mib=memory,
        warm_s=round(warm, 1),
        sweep_s=round(swept, 1),
        peak_mib=round(children),
    )


if __name__ == "__main__":
    main()
