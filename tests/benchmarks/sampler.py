"""How soon a sweep visits the best point of the built-in space: `python -m tests.benchmarks.sampler [--seeds 60]`.

Tables of accuracies are made up: an effect for every value of every parameter, an interaction of learning rate and
epochs, a deviation of every point, and noise on every observation, as different as the seeds.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from inat_ft.sweeps.defaults import BUILT_IN
from inat_ft.sweeps.parsing import parse_spec
from inat_ft.sweeps.sampler import FiniteSampler
from inat_ft.sweeps.space import SweepSpec

NOISE = 0.005
EFFECT = {"lr": 0.02, "epochs": 0.01, "dropout": 0.005, "batch_size": 0.005}
Table = dict[tuple[object, ...], float]


def make_table(spec: SweepSpec, seed: int) -> Table:
    """A true accuracy for each point."""
    rng = np.random.default_rng([seed, 1])
    effects = {name: {v: rng.normal(0, EFFECT[name]) for v in p.choices() or ()} for name, p in spec.varying.items()}
    pairs = {(lr, epochs): rng.normal(0, 0.005) for lr in effects["lr"] for epochs in effects["epochs"]}
    return {
        tuple(point.values()): 0.78
        + sum(effects[name][value] for name, value in point.items())
        + pairs[point["lr"], point["epochs"]]
        + rng.normal(0, 0.003)
        for point in spec.points() or ()
    }


def first_visit(make: Callable[[int], BaseSampler], spec: SweepSpec, seed: int) -> tuple[int, int, float, float]:
    """The run that first visits the best point (99: none), how many points differ, seconds, regret of the pick."""
    table, noise = make_table(spec, seed), np.random.default_rng([seed, 2])
    best = max(table, key=table.__getitem__)
    space = {name: optuna.distributions.CategoricalDistribution(p.choices() or ()) for name, p in spec.varying.items()}
    study = optuna.create_study(direction="maximize", sampler=make(seed))
    visited, seen, seconds = [], [], 0.0
    for _ in range(22):
        started = time.perf_counter()
        trial = study.ask(space)
        seconds += time.perf_counter() - started
        point = tuple(trial.params[name] for name in space)
        visited.append(point)
        seen.append(table[point] + noise.normal(0, NOISE))
        study.tell(trial, seen[-1])
    regret = table[best] - table[visited[int(np.argmax(seen))]]
    return (visited.index(best) + 1 if best in visited else 99), len(set(visited)), seconds / 22, regret


def engines(spec: SweepSpec) -> dict[str, Callable[[int], BaseSampler]]:
    points = spec.points() or []
    return {
        "bayes": lambda seed: FiniteSampler(points, "bayes", seed),
        "random, no repeats": lambda seed: FiniteSampler(points, "random", seed),
        "grid, in order": lambda seed: FiniteSampler(points, "grid", seed),
        "Optuna random": lambda seed: RandomSampler(seed=seed),
        "Optuna TPE": lambda seed: TPESampler(seed=seed),
        "Optuna TPE, 5 at random first": lambda seed: TPESampler(seed=seed, n_startup_trials=5),
        "Optuna GP": lambda seed: GPSampler(seed=seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = parse_spec(BUILT_IN)
    print("| engine | best visited by run 10 | by run 22 | median run | different of 22 | regret of the pick | ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, make in engines(spec).items():
        if asked.only in name:
            rows = np.array([first_visit(make, spec, seed) for seed in range(asked.seeds)])
            by10, by22 = (rows[:, 0] <= 10).mean(), (rows[:, 0] <= 22).mean()
            print(
                f"| {name} | {by10:.0%} | {by22:.0%} | {np.median(rows[:, 0]):.0f} | {rows[:, 1].mean():.1f} "
                f"| {rows[:, 3].mean():.4f} | {1000 * rows[:, 2].mean():.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
