"""The sampler: no point twice, the same points again, and the best one early."""

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution

from inat_ft.sweeps.defaults import BUILT_IN
from inat_ft.sweeps.parsing import parse_spec
from inat_ft.sweeps.sampler import FiniteSampler
from tests.benchmarks.sampler import engines, first_visit

SPACE = {
    "lr": CategoricalDistribution([1e-3, 1e-4]),
    "dropout": CategoricalDistribution([0.0, 0.2, 0.3]),
    "mode": CategoricalDistribution(["head", "partial", "full"]),
}
POINTS = [
    {"lr": lr, "dropout": dropout, "mode": mode}
    for lr in SPACE["lr"].choices
    for dropout in SPACE["dropout"].choices
    for mode in SPACE["mode"].choices
]


def propose(method: str, seed: int, number: int, value=lambda params: -params["dropout"]) -> list[tuple]:
    study = optuna.create_study(direction="maximize", sampler=FiniteSampler(POINTS, method, seed))
    points = []
    for _ in range(number):
        trial = study.ask(dict(SPACE))
        points.append(tuple(trial.params.values()))
        study.tell(trial, value(trial.params))
    return points


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["bayes", "random", "grid"]))
def test_every_point_comes_once_and_in_the_same_order_again(seed: int, method: str) -> None:
    points = propose(method, seed, 18)

    assert len(set(points)) == 18
    assert propose(method, seed, 18) == points


def test_grid_goes_in_order_and_random_depends_on_the_seed() -> None:
    assert propose("grid", 0, 3) == [(1e-3, 0.0, "head"), (1e-3, 0.0, "partial"), (1e-3, 0.0, "full")]
    assert propose("random", 0, 18) != propose("random", 1, 18)


def test_points_that_are_being_tried_are_not_proposed_again() -> None:
    study = optuna.create_study(sampler=FiniteSampler(POINTS, "bayes", 0))

    points = {tuple(study.ask(dict(SPACE)).params.values()) for _ in range(18)}

    assert len(points) == 18
    with pytest.raises(ValueError, match="not part of the point"):
        study.ask(dict(SPACE))


def test_a_trial_goes_where_the_table_is_high() -> None:
    value = {"head": 0.0, "partial": 0.5, "full": 1.0}
    points = propose("bayes", 3, 8, lambda params: value[params["mode"]] + params["dropout"])

    assert ("full", 0.3) in {(mode, dropout) for _, dropout, mode in points}
    assert sum(mode == "full" for *_, mode in points[4:]) >= 3


def test_the_best_of_24_points_is_visited_early() -> None:
    spec = parse_spec(BUILT_IN)
    make = engines(spec)["bayes"]

    visits = [first_visit(make, spec, seed)[0] for seed in range(12)]

    assert sum(visit <= 10 for visit in visits) >= 8
    assert max(visits) <= 22
