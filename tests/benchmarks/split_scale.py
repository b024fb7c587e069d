"""Splitting and opening a manifest of a million rows, generated, without pixels.

python -m tests.benchmarks.split_scale [--rows 1000000]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from inat_ft.data.manifest import read_manifest, write_manifest
from inat_ft.data.sources.base import ImageList
from inat_ft.data.split import SplitOptions, make_manifest
from inat_ft.images.scan import Scan
from tests.benchmarks.reporting import report


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def split(rows: int, file: Path) -> None:
    """1,000 classes, a tenth of the images in groups of four."""
    rng = np.random.default_rng(0)
    paths = [f"train/class{number % 1000:03d}/{number:08d}.jpg" for number in range(rows)]
    labels = [f"class{number % 1000:03d}" for number in range(rows)]
    hashes = [raw.hex() for raw in np.frombuffer(rng.bytes(32 * rows), "V32").tolist()]
    groups = [f"g{number // 4000}_{number % 1000}" if number < rows // 10 else "" for number in range(rows)]
    images = ImageList(file.parent, "class folders")
    for path, label, group in zip(paths, labels, groups, strict=True):
        images.add(path, label, group=group)
    scanned = Scan(hashes, [""] * rows)
    print(f"{rows:,} rows generated, {peak_mib():,.0f} MiB", flush=True)
    started = time.perf_counter()
    manifest, _ = make_manifest(images, scanned, SplitOptions(test_fraction=0.1, near=False), file)
    divided = time.perf_counter()
    write_manifest(manifest)
    done = time.perf_counter()
    print(f"divided in {divided - started:.1f} s, written in {done - divided:.1f} s, peak {peak_mib():,.0f} MiB")
    report(rows=rows, divide_s=divided - started, write_s=done - divided, peak_mib=peak_mib())


def open_it(file: Path) -> None:
    started = time.perf_counter()
    manifest = read_manifest(file)
    counts = {subset: len(manifest.rows(subset)) for subset in ("train", "val", "test")}
    seconds = time.perf_counter() - started
    print(
        f"opened in {seconds:.1f} s, peak {peak_mib():,.0f} MiB, "
        f"{file.stat().st_size / 2**20:,.0f} MiB on disk, {counts}"
    )
    report(open_s=seconds, open_peak_mib=peak_mib())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--open", type=Path)
    chosen = parser.parse_args()
    if chosen.open:
        open_it(chosen.open)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            split(chosen.rows, Path(temporary) / "m.csv")
            command = [sys.executable, "-m", "tests.benchmarks.split_scale", "--open", f"{temporary}/m.csv"]
            subprocess.run(command, check=True)
