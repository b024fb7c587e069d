"""The regret of search methods on the built-in sweep: `python -m tests.benchmarks.sampler [--tables 200]`.

Each table gives a made-up accuracy to every point: an effect of each value, an interaction of learning rate and epochs, a
deviation of the point, and noise on each observation. Regret is the best accuracy of the table minus that of the trial
with the best observation.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import optuna
from inat_ft_sweeps.attempts import Trial, TrialState
from inat_ft_sweeps.parsing import BUILT_IN, parse_spec
from inat_ft_sweeps.sampler import distributions, propose
from inat_ft_sweeps.space import Params, SweepSpec
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

NOISE = 0.005
NUM_TRIALS = 22
EFFECT = {"lr": 0.02, "epochs": 0.01, "dropout": 0.005, "batch_size": 0.005}
Search = Callable[[SweepSpec, int, Callable[[Params], float]], None]
"""Searches a space with a seed; calls the function for each trial."""


def make_table(spec: SweepSpec, seed: int) -> dict[tuple[object, ...], float]:
    """Return a true accuracy for each point."""
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


def without_repeats(method: str) -> Search:
    """The search of this package."""

    def search(spec: SweepSpec, seed: int, observe: Callable[[Params], float]) -> None:
        spec, trials = spec.model_copy(update={"method": method}), []
        for number in range(NUM_TRIALS):
            params = propose(spec, trials, seed)
            assert params is not None
            trials.append(Trial(number, TrialState.COMPLETE, params, observe(params), f"run-{number}"))

    return search


def with_repeats(make: Callable[[int], BaseSampler]) -> Search:
    """A sampler of Optuna, which may try a point again."""

    def search(spec: SweepSpec, seed: int, observe: Callable[[Params], float]) -> None:
        study, space = optuna.create_study(direction="maximize", sampler=make(seed)), distributions(spec)
        for _ in range(NUM_TRIALS):
            trial = study.ask(space)
            study.tell(trial, observe({name: trial.params[name] for name in space}))

    return search


SEARCHES: dict[str, Search] = {
    "bayes": without_repeats("bayes"),
    "random": without_repeats("random"),
    "grid": without_repeats("grid"),
    "Optuna RandomSampler": with_repeats(lambda seed: RandomSampler(seed=seed)),
    "Optuna TPESampler": with_repeats(lambda seed: TPESampler(seed=seed)),
    "Optuna TPESampler(n_startup_trials=5)": with_repeats(lambda seed: TPESampler(seed=seed, n_startup_trials=5)),
    "Optuna GPSampler": with_repeats(lambda seed: GPSampler(seed=seed)),
    "Optuna GPSampler(n_startup_trials=5)": with_repeats(lambda seed: GPSampler(seed=seed, n_startup_trials=5)),
}


def measure(search: Search, spec: SweepSpec, seed: int) -> tuple[int, int, float, float]:
    """Return the trial that first visits the best point (99: none), the distinct points, and regret after 10 and 22."""
    table, noise = make_table(spec, seed), np.random.default_rng([seed, 2])
    best = max(table, key=table.__getitem__)
    visited: list[tuple[object, ...]] = []
    seen: list[float] = []

    def observe(params: Params) -> float:
        visited.append(tuple(params.values()))
        seen.append(table[visited[-1]] + noise.normal(0, NOISE))
        return seen[-1]

    search(spec, seed, observe)
    regret = [table[best] - table[visited[int(np.argmax(seen[:budget]))]] for budget in (10, NUM_TRIALS)]
    return (visited.index(best) + 1 if best in visited else 99), len(set(visited)), regret[0], regret[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = parse_spec(BUILT_IN)
    print("| search | regret after 22 | after 10 | best visited by trial 10 | distinct of 22 | ms per trial |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, search in SEARCHES.items():
        if chosen.only not in name:
            continue
        started = time.perf_counter()
        first, distinct, after10, after22 = np.array([measure(search, spec, seed) for seed in range(chosen.tables)]).T
        ms = 1000 * (time.perf_counter() - started) / chosen.tables / NUM_TRIALS
        error = after22.std() / chosen.tables**0.5
        print(
            f"| {name} | {after22.mean():.4f} ± {error:.4f} | {after10.mean():.4f} | {(first <= 10).mean():.0%} "
            f"| {distinct.mean():.1f} | {ms:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
