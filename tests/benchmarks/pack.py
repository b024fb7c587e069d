"""`inat-ft split` with and without `--pack 224`, and the first training after it, as whole processes, interleaved.

    python -m tests.benchmarks.pack [--images 600] [--rounds 3]

JPEGs of 800 x 600 pixels. The training is two epochs of a very small CNN from scratch, so that decoding is a large part of
it. Times are processor seconds over all threads, and elapsed seconds.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.pictures import make_pictures, write_csv
from tests.benchmarks.reporting import hardware, report
from tests.benchmarks.warm import ROOT, run

TRAIN = ("train", "--quiet", "--backbone", "cnn", "--image-size", "224", "--set", "model.filters=16")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    ways = {"without": ("--cache-dir", "none"), "with --pack": ("--pack", "224", "--cache-dir", "packed")}
    print(hardware(), flush=True)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder / "pictures", chosen.images)
        write_csv(folder / "pictures")
        times: dict[str, list[tuple[float, float]]] = {}
        for number in range(chosen.rounds):
            for way, words in ways.items():
                cache = [*words[:-1], f"{words[-1]}{number}"]
                split = run(ROOT, folder, "split", "pictures/list.csv", "--quiet", "--force", *cache)
                times.setdefault(f"split {way}", []).append(split)
                train = run(ROOT, folder, *TRAIN, "--epochs", "2", "--batch-size", "64", *cache[-2:])
                times.setdefault(f"first training {way}", []).append(train)
        for name, pairs in times.items():
            processor, elapsed = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"{name:27} processor {processor:.2f} s, elapsed {elapsed:.2f} s")
            rows[name] = {"processor_s": round(processor, 2), "elapsed_s": round(elapsed, 2)}
    report(images=chosen.images, rounds=chosen.rounds, **rows)


if __name__ == "__main__":
    main()
