"""Do the tests and intervals hold their level? Simulated type-I error and coverage of `eval`, `compare` and `sweep best`.

python -m tests.benchmarks.inference [--quick] [--only images|discordant|groups|sweeps]

Rates are the worst over all settings of a row, so that with few repetitions they include the luck of the worst setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from inat_ft_sweeps.selection import holm_against_first
from scipy.stats import binom

from inat_ft.metrics import Contributions, Predictions, get_metric
from inat_ft.metrics.bounds import seed_variance_test
from inat_ft.metrics.builtin import proportion

NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
DESIGNS = {1: (10, 200), 2: (10, 100), 3: (10, 60), 5: (10, 100), 20: (10, 50), 200: (10,)}
"""Numbers of classes by images a class."""


@dataclass(frozen=True)
class World:
    """A population: every class with its accuracy, where errors go, and how classes are drawn into the test set."""

    classes: int
    images: int
    accuracy: float
    errors: str = "uniform"
    spread: float = 0.0
    at_random: bool = False

    @property
    def recalls(self) -> np.ndarray:
        return np.clip(self.accuracy + self.spread * np.linspace(-1, 1, self.classes), 0, 1)

    def labels(self, rng: np.random.Generator) -> np.ndarray:
        if self.at_random:
            return rng.integers(0, self.classes, self.classes * self.images)
        return np.repeat(np.arange(self.classes), self.images)

    def predict(self, rng: np.random.Generator, true: np.ndarray) -> Predictions:
        """A classifier with a confidence between 0.5 and 0.99; the other classes share the rest."""
        number, classes = len(true), self.classes
        step = {"uniform": rng.integers(1, classes, number), "next": np.ones(number, int)}.get(self.errors)
        wrong = np.where(true == 0, 1, 0) if step is None else (true + step) % classes
        predicted = np.where(rng.random(number) < self.recalls[true], true, wrong)
        sure = rng.uniform(0.5, 0.99, number)
        p = np.repeat(((1 - sure) / (classes - 1))[:, None], classes, 1)
        p[np.arange(number), predicted] = sure
        return Predictions(tuple(map(str, range(classes))), [], [], true, predicted, p)

    def truth(self, metric: str) -> float:
        """The metric on the population."""
        if metric == "log_loss":
            sure = 0.5 + 0.49 * (np.arange(10_000) + 0.5) / 10_000
            right, wrong = -np.log(sure).mean(), -np.log((1 - sure) / (self.classes - 1)).mean()
            return float(self.recalls.mean() * right + (1 - self.recalls.mean()) * wrong)
        if metric != "macro_f1":
            return float(self.recalls.mean())
        missed = 1 - self.recalls
        if self.errors == "uniform":
            false = (missed.sum() - missed) / (self.classes - 1)
        elif self.errors == "next":
            false = np.roll(missed, 1)
        else:
            false = np.zeros(self.classes)
            false[0], false[1] = missed[1:].sum(), missed[0]
        return float((2 * self.recalls / (1 + self.recalls + false)).mean())


def worlds(images: int, quick: bool) -> Iterator[World]:
    for classes in DESIGNS[images][-1:] if quick else DESIGNS[images]:
        yield World(classes, images, 0.5)
        yield World(classes, images, 0.99)
        yield World(classes, images, 0.9, errors="sink", spread=0.1)
        yield World(classes, images, 0.8, errors="next", at_random=True)


def covers(contributions: Contributions, truth: float) -> bool:
    """Whether the 95% interval contains the population value: whether its test would not reject that value."""
    least, most = contributions.least - truth, contributions.most - truth
    return Contributions(contributions.values - truth, least, most, contributions.bias).p >= 0.05


@lru_cache(maxsize=100_000)
def accuracy_interval(right: int, number: int) -> tuple[float, float]:
    found = proportion(right, number)
    assert found.low is not None and found.high is not None
    return found.low, found.high


def rates(world: World, repetitions: int) -> tuple[dict[str, float], dict[str, float]]:
    """Coverage of the intervals of `eval`, and type-I error of `compare` between equally good classifiers, by metric."""
    rng, metrics = np.random.default_rng(0), {name: get_metric(name) for name in NAMES}
    covered, rejected = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    for _ in range(repetitions):
        true = world.labels(rng)
        a, b = world.predict(rng, true), world.predict(rng, true)
        for name in NAMES:
            first, second = metrics[name].contributions(a), metrics[name].contributions(b)
            rejected[name] += (first - second).p < 0.05
            if name == "accuracy":
                low, high = accuracy_interval(int(a.correct.sum()), len(true))
                covered[name] += low <= world.truth(name) <= high
            else:
                covered[name] += covers(first, world.truth(name))
    share = {name: covered[name] / repetitions for name in NAMES}
    return share, {name: rejected[name] / repetitions for name in NAMES}


def few_images(repetitions: int, quick: bool) -> None:
    rows = {images: [rates(world, repetitions) for world in worlds(images, quick)] for images in DESIGNS}
    for title, part, worst in (("Coverage of eval", 0, min), ("Type-I error of compare", 1, max)):
        print(f"\n{title}, worst of all settings, {repetitions} repetitions each\n")
        print(f"| images a class | {' | '.join(name.replace('_', ' ') for name in NAMES)} |")
        print("| --- " * (len(NAMES) + 1) + "|")
        for images, found in rows.items():
            values = [worst(row[part][name] for row in found) for name in NAMES]
            print(f"| {images} | {' | '.join(f'{value:.1%}' for value in values)} |", flush=True)


@cache
def paired(gained: int, lost: int, number: int) -> Contributions:
    values = np.zeros(number)
    values[:gained], values[gained : gained + lost] = 1, -1
    return Contributions(values, -1.0, 1.0)


def discordant(number: int, rate: float, share: float) -> tuple[float, float, float]:
    """Of the paired accuracy by enumeration: coverage, type-I error (share 0.5), equivalence at the margin (TOST).

    rate: of images on which only one is right; share: of these on which it is the second.
    """
    truth, coverage, rejected, equivalent = rate * (1 - 2 * share), 0.0, 0.0, 0.0
    for count in range(int(binom.ppf(1 - 1e-6, number, rate)) + 1):
        for lost in range(count + 1):
            weight = float(binom.pmf(count, number, rate) * binom.pmf(lost, count, share))
            if weight < 1e-6:
                continue
            found = paired(count - lost, lost, number)
            coverage += weight * covers(found, truth)
            rejected += weight * (found.p < 0.05)
            equivalent += weight * (truth > 0 and found.within(truth))
    return coverage, rejected, equivalent


def few_discordant(quick: bool) -> None:
    print("\nAccuracy of two classifiers, exact by enumeration; the true difference is the margin\n")
    print("| images | expected discordant | coverage, least | type-I error | equivalent at the margin, most |")
    print("| --- | --- | --- | --- | --- |")
    for number in (20, 100) if quick else (10, 20, 50, 100, 200, 500):
        for expected in (1, 4) if quick else (0.5, 1, 2, 4, 8, 16):
            if expected / number > 0.6:
                continue
            found = [discordant(number, expected / number, share) for share in (0.0, 0.1, 0.25, 0.5)]
            least, most = min(row[0] for row in found), max(row[2] for row in found)
            print(f"| {number} | {expected} | {least:.1%} | {found[-1][1]:.1%} | {most:.1%} |", flush=True)


def groups(repetitions: int, quick: bool) -> None:
    """Type-I error of `--group`: seeds shift the accuracy, and part of the images is hard for all trainings."""
    spreads = ((0.003, 0.017), (0.029, 0.029), (0.003, 0.05), (0.017, 0.003))
    print(f"\nType-I error of compare --group, 1,000 images, {repetitions} repetitions each\n")
    print("| seeds | " + " | ".join(f"spread {a:.1%} and {b:.1%}" for a, b in spreads) + " |")
    print("| --- " * (len(spreads) + 1) + "|")
    for seeds in ((3, 3), (5, 2)) if quick else ((2, 2), (3, 3), (5, 2), (2, 5), (5, 3), (10, 2)):
        found = [group_error(seeds, spread, repetitions) for spread in spreads]
        print(f"| {seeds[0]}, {seeds[1]} | {' | '.join(f'{rate:.1%}' for rate in found)} |", flush=True)


def group_error(seeds: tuple[int, int], spreads: tuple[float, float], repetitions: int, images: int = 1000) -> float:
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(repetitions):
        shared = rng.random(images)
        sides = []
        for number, spread in zip(seeds, spreads, strict=True):
            skill = np.clip(0.8 + spread * rng.standard_normal((number, 1)), 0, 1)
            luck = np.where(rng.random((number, images)) < 0.5, shared, rng.random((number, images)))
            sides.append([Contributions(row.astype(float), 0.0, 1.0) for row in luck < skill])
        p = seed_variance_test(sides).p
        rejected += p is not None and p < 0.05
    return rejected / repetitions


def sweeps(repetitions: int, quick: bool) -> None:
    """How often `sweep best` calls any of several equally good trials worse than the best."""
    print(f"\nSweeps of equally good trials, 2,000 images, {repetitions} sweeps each\n")
    print("| trials | accuracy | sweeps in which a trial is called worse |")
    print("| --- | --- | --- |")
    for trials in (10,) if quick else (5, 22, 50):
        for accuracy in (0.8, 0.98):
            print(f"| {trials} | {accuracy} | {sweep_error(trials, accuracy, repetitions):.1%} |", flush=True)


def sweep_error(trials: int, accuracy: float, repetitions: int, images: int = 2000) -> float:
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(repetitions):
        shared = rng.random(images)
        luck = np.where(rng.random((trials, images)) < 0.7, shared, rng.random((trials, images)))
        right = (luck < accuracy).astype(float)
        order = np.argsort(-right.mean(1), kind="stable")
        wrong += min(holm_against_first([Contributions(row, 0.0, 1.0) for row in right[order]])) < 0.05
    return wrong / repetitions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer settings and repetitions: about a minute")
    parser.add_argument("--only", choices=("images", "discordant", "groups", "sweeps"), help="one part")
    options = parser.parse_args()
    quick = options.quick
    parts = {
        "images": lambda: few_images(100 if quick else 1000, quick),
        "discordant": lambda: few_discordant(quick),
        "groups": lambda: groups(100 if quick else 1000, quick),
        "sweeps": lambda: sweeps(20 if quick else 200, quick),
    }
    for name, run in parts.items():
        if options.only in (None, name):
            run()


if __name__ == "__main__":
    main()
