"""The bare forward pass of frozen layers: torch, torch.compile, OpenVINO and ONNX Runtime, against the matrix product.

    python -m tests.benchmarks.frozen [--batches 16] [--rounds 3] [--threads 1] [--compile] [--precisions bf16 fp32]

ResNet50 without its head, random weights, 224 x 224, BatchNorm folded. OpenVINO and ONNX Runtime are measured if they are
installed. Variants are interleaved, and the figure is the best round, in images per second of CPU time, so that other work
on the machine matters little. With several threads, CPU time includes the time in which threads wait.
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 makes torch and OpenVINO compute as on a processor without AVX-512.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from inat_ft_runtimes.frozen import RUNTIMES
from inat_ft_startup.memory import keep_memory
from torch import Tensor

from inat_ft.cache.prefix_forward import Compiled, folded_prefix, reduced_prefix
from inat_ft.config import ModelConfig
from inat_ft.models.build import build_model
from inat_ft.models.net import Net
from tests.benchmarks.reporting import report

GFLOP = 8.2
"""Of the forward pass of ResNet50 for an image of 224 x 224; a multiply-add counts as two."""
SIDE = 1024


def variants(net: Net, precision: str, images: Tensor, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    depth, bf16 = len(net.stages), precision == "bf16"
    made = reduced_prefix(net, depth, torch.bfloat16) if bf16 else folded_prefix(net, depth)
    found: dict[str, Callable[[Tensor], Tensor]] = {"torch": made.build()}
    if compiled:
        found["torch.compile"] = Compiled(made.build(), print)
    for name, (packages, convert, dtypes) in RUNTIMES.items():
        if images.dtype in dtypes and all(map(find_spec, packages)):
            found[name] = convert(net, depth, images.dtype, images)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", nargs="*", type=int, default=[16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precisions", nargs="*", choices=("bf16", "fp32"), default=("bf16", "fp32"))
    chosen = parser.parse_args()
    keep_memory()  # as the command line does
    torch.set_num_threads(chosen.threads)
    net = build_model(ModelConfig(backbone="resnet50", weights="none"), 10, 0, 224, False).net
    net = net.to(memory_format=torch.channels_last).eval()
    rows = []
    for precision in chosen.precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for batch in chosen.batches:
            images = torch.rand(batch, 3, 224, 224).to(dtype).contiguous(memory_format=torch.channels_last)
            square = torch.rand(SIDE, SIDE).to(dtype)
            runs: dict[str, Callable[[], Tensor]] = {"matrix product": lambda square=square: square @ square}
            for name, module in variants(net, precision, images, chosen.compile).items():
                runs[name] = lambda module=module, images=images: module(images)
            work = {name: batch * GFLOP if name != "matrix product" else 2 * SIDE**3 / 1e9 for name in runs}
            rates = dict.fromkeys(runs, 0.0)
            with torch.inference_mode():
                for number in range(chosen.rounds + 1):  # the first round warms up
                    for name, run in runs.items():
                        started = time.process_time()
                        run()
                        rate = work[name] / (time.process_time() - started)
                        rates[name] = max(rates[name], rate if number else 0.0)
            peak = rates.pop("matrix product")
            for name, rate in rates.items():
                row = {"precision": precision, "batch": batch, "variant": name}
                row |= {"images_per_cpu_s": round(rate / GFLOP, 1), "of_matrix_product": round(rate / peak, 2)}
                rows.append(row)
                print(f"{precision} {batch:3} {name:14} {rate / GFLOP:6.1f} images/s, {rate / peak:.0%} of {peak:.0f}")
    report(threads=chosen.threads, capability=torch.backends.cpu.get_cpu_capability(), rows=rows)


if __name__ == "__main__":
    main()
