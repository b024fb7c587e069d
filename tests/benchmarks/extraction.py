"""Features of images: ours against the bare forward pass, and against what the machine can multiply.

    python -m tests.benchmarks.extraction [--images 192] [--rounds 3]

Bare: ResNet50 without its head, BatchNorm folded, bfloat16, channels last, on batches that lie in memory. Ours: the same
from JPEG files to rows in the store on disk, decoding included. Beside them a product of bfloat16 matrices, 2048 x 2048.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from inat_ft.config import ModelConfig
from inat_ft.data.images import sha256_of
from inat_ft.data.pixels import Pixels
from inat_ft.data.threads import decoders
from inat_ft.engine.device import choose_compute
from inat_ft.engine.front import fast_front
from inat_ft.engine.prefix import PLAIN, PrefixCache
from inat_ft.models.build import build_model
from tests.benchmarks.pictures import make_pictures

GFLOP = 8.2
"""Of ResNet50 at 224 x 224, an image; a multiply-add is two."""


def seconds(device: torch.device, run: Callable[..., object], times: int, *arguments: object) -> float:
    started = time.perf_counter()
    for _ in range(times):
        run(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    compute = choose_compute("auto", "bf16")
    model = build_model(ModelConfig(backbone="resnet50", weights="none"), 10, 0, 224, False)
    net = model.net.to(compute.device).to(memory_format=torch.channels_last)
    cut = len(net.stages)
    front = fast_front(net, cut)
    bare = front.build()
    size = 32 if compute.device.type == "cpu" else 256
    batch = torch.rand(size, 3, 224, 224, device=compute.device).to(torch.bfloat16)
    batch = batch.contiguous(memory_format=torch.channels_last)
    square = torch.rand(2048, 2048, device=compute.device).to(torch.bfloat16)
    steps = -(-chosen.images // size)
    rates: dict[str, list[float]] = {"bare": [], "ours": [], "gemm": []}
    with tempfile.TemporaryDirectory() as temporary, decoders() as pool, torch.inference_mode():
        files = sorted(make_pictures(Path(temporary) / "pictures", chosen.images).rglob("*.jpg"))
        hashes = [sha256_of(file) for file in files]
        labels = torch.zeros(len(files), dtype=torch.int64, device=compute.device)
        seconds(compute.device, bare, 2, batch)
        for number in range(chosen.rounds):
            rates["bare"].append(steps * size / seconds(compute.device, bare, steps, batch))
            cache = PrefixCache(net, model.preprocess, compute, Path(temporary) / f"cache{number}")
            pixels = Pixels(files, hashes, labels, 224, cache.folder, pool)
            arguments = front, cache.estimate(cut, len(files), 0, 1, 1), pixels, PLAIN, lambda done, total: None
            rates["ours"].append(len(files) / seconds(compute.device, cache.rows, 1, *arguments))
            rates["gemm"].append(20 * 2 * 2048**3 / seconds(compute.device, torch.matmul, 20, square, square) / 1e12)
    bare_rate, our_rate, peak = (statistics.median(rates[name]) for name in ("bare", "ours", "gemm"))
    print(f"{compute.describe()}, torch {torch.__version__}, {chosen.images} images, {chosen.rounds} rounds")
    print(f"bare forward {bare_rate:.1f} images/s, {bare_rate * GFLOP / 1e3:.2f} TFLOP/s, "
          f"{bare_rate * GFLOP / 1e3 / peak:.0%} of the matrix product's {peak:.2f} TFLOP/s")  # fmt: skip
    print(f"ours, from files to the store: {our_rate:.1f} images/s, {our_rate / bare_rate:.0%} of the bare forward")


if __name__ == "__main__":
    main()
