"""Scanning against the decoder alone, and a warm epoch from the packed cache against decoding.

    python -m tests.benchmarks.data [--images 1200]

Rounds are interleaved and medians taken. The decoder alone is libjpeg through torchvision in as many threads as the scan
uses, on bytes already in memory.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from inat_ft_startup.memory import keep_memory
from torchvision.io import ImageReadMode, decode_jpeg

from inat_ft.cache.packed_images import Pixels
from inat_ft.data.batches import Batches, ImageInput
from inat_ft.images.decode import sha256_of
from inat_ft.images.scan import scan
from tests.benchmarks.pictures import make_pictures
from tests.benchmarks.reporting import report

ROUNDS = 5


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main(images: int) -> None:
    keep_memory()  # as the command line does
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(cores) as pool:
        root = make_pictures(Path(temporary) / "p", images)
        files = sorted(root.rglob("*.jpg"))
        paths = [file.relative_to(root).as_posix() for file in files]
        encoded = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files]

        def strip_metadata() -> None:
            list(
                pool.map(lambda data: decode_jpeg(data, ImageReadMode.RGB).shape, encoded)
            )  # kept no longer than in a scan

        def ours() -> None:
            scan(root, paths, 10**9, cores, True, lambda done, total: None)

        ours()
        times = [(seconds(strip_metadata), seconds(ours)) for _ in range(2 * ROUNDS)]
        alone, scanned = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{cores} cores, {images} JPEGs of 800 x 600")
        print(f"decoder alone {images / alone:8.0f} images/s")
        print(f"scan          {images / scanned:8.0f} images/s, {alone / scanned:.0%} of it")

        hashes = [sha256_of(file) for file in files]
        labels = torch.zeros(images, dtype=torch.int64)
        pixels = Pixels(files, hashes, labels, 224, Path(temporary) / "cache", pool)
        packed = pixels.packed(lambda done, total: None)
        prepare = ImageInput((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

        def read(source) -> None:
            order = torch.randperm(images)
            for numbers in torch.split(order, 64):
                source.rows(numbers)

        def whole(source) -> None:
            for _ in Batches(source, labels, 64, prepare)(torch.randperm(images)):
                pass

        times = [(seconds(lambda: read(pixels.files())), seconds(lambda: read(packed))) for _ in range(ROUNDS)]
        decoding, warm = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"an epoch's pixels, decoded    {images / decoding:8.0f} images/s")
        print(f"an epoch's pixels, warm cache {images / warm:8.0f} images/s, {decoding / warm:.0f} times as fast")
        print(f"the same, normalised to float {images / seconds(lambda: whole(packed)):8.0f} images/s")
        before = resident_mib()
        for _ in range(3):
            read(packed)
        grown = resident_mib() - before
        print(f"resident memory grew by {grown:.0f} MiB over three more warm epochs")
    report(
        images=images,
        decoder_images_per_s=round(images / alone),
        scan_images_per_s=round(images / scanned),
        scan_share=round(alone / scanned, 3),
        warm_ratio=round(decoding / warm, 1),
        grown_mib=round(grown, 1),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1200)
    main(parser.parse_args().images)
