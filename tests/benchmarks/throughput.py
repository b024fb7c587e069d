"""Images per second in the steady state, as a share of the matrix throughput and of the memory bandwidth.

    python -m tests.benchmarks.throughput [--images 192] [--rounds 3]

Bare forward: ResNet50 without its head, BatchNorm folded, channels last, on batches in memory. Extraction: the same from JPEG
files, and from the packed cache, to rows in the store on disk. Full fine-tuning: the last of three epochs from the packed
cache, forward and backward on four fifths of the images, forward on the others. They are compared with a matrix product in
the same precision, bfloat16 if the hardware has it, and with the bandwidth of a copy in memory. On a GPU, use several
thousand images.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from inat_ft_startup.memory import keep_memory

from inat_ft.cache.frozen_prefix import IDENTITY, PrefixCache
from inat_ft.cache.packed_images import Pixels
from inat_ft.cache.prefix_forward import folded_prefix, reduced_prefix
from inat_ft.config import ModelConfig
from inat_ft.engine.device import choose_compute
from inat_ft.images.decode import sha256_of
from inat_ft.models.build import build_model
from inat_ft.threads import decoders
from tests.benchmarks.__main__ import FASTEST
from tests.benchmarks.pictures import make_pictures, write_csv
from tests.benchmarks.reporting import environment, report

ROOT = Path(__file__).parents[2]
FORWARD, STEP = 8.2, 24.4
"""GFLOP of ResNet50 per image of 224 x 224: forward; forward and backward. A multiply-add counts as two."""
MOVED = 0.164
"""GB that the forward pass of an image reads and writes in bfloat16, without fusion of layers."""


def nothing(done: int, total: int) -> None:
    pass


def seconds(device: torch.device, run: Callable[..., object], times: int, *arguments: object) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        run(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def full(folder: Path) -> tuple[float, float]:
    """Return images per second of the last epoch of three, and GFLOP per image."""
    split = [sys.executable, "-m", "inat_ft", "split", "pictures/list.csv", "--no-near", "--test-fraction", "0"]
    subprocess.run(split, cwd=folder, check=True, env=environment(), capture_output=True)
    words = "train --quiet --json --mode full --weights none --patience 0 --cache packed --epochs 3 --cache-dir packed"
    batch = ["--batch-size", "256"] if torch.cuda.is_available() else []
    command = [sys.executable, "-m", "inat_ft", *words.split(), "--precision", FASTEST, *batch]
    ran = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
    record = json.loads(ran.stdout)
    train, val = record["split"]["counts"]["train"], record["split"]["counts"]["val"]
    return (train + val) / record["history"][-1]["seconds"], (train * STEP + val * FORWARD) / (train + val)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    keep_memory()  # as the command line does
    compute = choose_compute("auto", FASTEST)
    model = build_model(ModelConfig(backbone="resnet50", weights="none"), 10, 0, 224, False)
    net = model.net.to(compute.device).to(memory_format=torch.channels_last)
    depth = len(net.stages)
    dtype = torch.bfloat16 if FASTEST == "bf16" else torch.float32
    prefix = reduced_prefix(net, depth, dtype) if FASTEST == "bf16" else folded_prefix(net, depth)
    forward = prefix.build()
    on_gpu = compute.device.type == "cuda"
    size, side = (256, 8192) if on_gpu else (32, 2048)
    batch = torch.rand(size, 3, 224, 224, device=compute.device).to(dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)
    square = torch.rand(side, side, device=compute.device).to(dtype)
    big = torch.zeros(2**28 if on_gpu else 2**26, device=compute.device)
    steps = -(-chosen.images // size)
    rates: dict[str, list[float]] = {"bare": [], "files": [], "packed": [], "gemm": [], "copy": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = sorted(make_pictures(folder / "pictures", chosen.images).rglob("*.jpg"))
        write_csv(folder / "pictures")
        hashes = [sha256_of(file) for file in files]
        labels = torch.zeros(len(files), dtype=torch.int64, device=compute.device)
        with decoders() as pool, torch.inference_mode():
            seconds(compute.device, forward, 2, batch)
            seconds(compute.device, torch.matmul, 2, square, square)
            for number in range(chosen.rounds):
                rates["bare"].append(steps * size / seconds(compute.device, forward, steps, batch))
                for kind in ("files", "packed"):
                    cache = PrefixCache(net, model.preprocess, compute, folder / f"{kind}{number}")
                    pixels = Pixels(files, hashes, labels, 224, cache.folder, pool)
                    if kind == "packed":
                        pixels.packed(nothing)
                    prefix_forward = cache.prefix_forward(depth, [], lambda: torch.empty(0))
                    arguments = prefix_forward, pixels, IDENTITY, nothing
                    rates[kind].append(len(files) / seconds(compute.device, cache.rows, 1, *arguments))
                copied = 10 * 2 * big.numel() * big.element_size() / 1e9
                rates["copy"].append(copied / seconds(compute.device, big.clone, 10))
                rates["gemm"].append(20 * 2 * side**3 / seconds(compute.device, torch.matmul, 20, square, square) / 1e9)
        trained, work = full(folder)
    bare_rate, from_files, from_packed, peak, bandwidth = (statistics.median(rates[name]) for name in rates)
    print(f"{compute.describe()}, torch {torch.__version__}, {chosen.images} images, {chosen.rounds} rounds")
    print(
        f"matrix product in {FASTEST}, {side} x {side}: {peak / 1e3:.2f} TFLOP/s; copy in memory: {bandwidth:.0f} GB/s"
    )
    table = (
        ("bare forward", bare_rate, FORWARD),
        ("extraction, from files to the store", from_files, FORWARD),
        ("extraction, from the packed cache", from_packed, FORWARD),
        ("full fine-tuning, from the packed cache", trained, work),
    )
    for name, rate, each in table:
        of_bare = f", {rate / bare_rate:.0%} of the bare forward" if name.startswith("extraction") else ""
        moved = MOVED * dtype.itemsize / 2 * each / FORWARD
        shares = (
            f"{rate * each / peak:.0%} of the matrix product, {rate * moved / bandwidth:.0%} of the memory bandwidth"
        )
        print(f"{name:40} {rate:9.1f} images/s, {shares}{of_bare}")
    report(
        images=chosen.images,
        precision=FASTEST,
        memory_gb_per_s=round(bandwidth, 1),
        matrix_tflops=round(peak / 1e3, 3),
        images_per_s={name: round(rate, 1) for name, rate, _ in table},
        share_of_matrix_product={name: round(rate * each / peak, 3) for name, rate, each in table},
    )


if __name__ == "__main__":
    main()
