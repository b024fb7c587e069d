"""The search methods: no point twice, the same points again for a seed, and the best one early."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inat_ft_sweeps.attempts import Trial, TrialState
from inat_ft_sweeps.parsing import BUILT_IN, parse_spec
from inat_ft_sweeps.sampler import propose

from tests.benchmarks.sampler import SEARCHES, measure

PARAMETERS = {
    "lr": {"values": [1e-3, 1e-4]},
    "dropout": {"values": [0.0, 0.2, 0.3]},
    "mode": {"values": ["head", "partial", "full"]},
}
METRIC = {"name": "val_accuracy", "goal": "maximize"}


def search(method: str, seed: int, number: int, value=lambda params: -params["dropout"], parameters=PARAMETERS):
    spec = parse_spec({"method": method, "metric": METRIC, "parameters": parameters})
    trials: list[Trial] = []
    for _ in range(number):
        params = propose(spec, trials, seed)
        assert params == propose(spec, trials, seed)
        spec.check_point(params)
        trials.append(Trial(len(trials), TrialState.COMPLETE, params, value(params), "run"))
    return [tuple(trial.params.values()) for trial in trials], (spec, trials)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["bayes", "random", "grid"]))
def test_every_point_is_proposed_once_and_in_the_same_order_again(seed: int, method: str) -> None:
    points, (spec, trials) = search(method, seed, 18)

    assert len(set(points)) == 18
    assert propose(spec, trials, seed) is None
    assert search(method, seed, 18)[0] == points


def test_grid_is_in_order_and_random_depends_on_the_seed() -> None:
    assert search("grid", 0, 3)[0] == [(1e-3, 0.0, "head"), (1e-3, 0.2, "head"), (1e-3, 0.3, "head")]
    assert search("random", 0, 18)[0] != search("random", 1, 18)[0]


def test_running_and_failed_trials_count_as_tried() -> None:
    spec = parse_spec({"method": "bayes", "metric": METRIC, "parameters": PARAMETERS})
    trials: list[Trial] = []
    for number in range(18):
        state = TrialState.RUNNING if number % 2 else TrialState.FAILED
        trials.append(Trial(number, state, propose(spec, trials, 0), None, "run"))

    assert len({tuple(trial.params.values()) for trial in trials}) == 18
    assert propose(spec, trials, 0) is None


def test_bayes_proposes_points_near_the_best_ones() -> None:
    value = {"head": 0.0, "partial": 0.5, "full": 1.0}
    points, _ = search("bayes", 3, 10, lambda params: value[params["mode"]] + params["dropout"])

    assert ("full", 0.3) in {(mode, dropout) for _, dropout, mode in points}
    assert sum(mode == "full" for *_, mode in points[5:]) >= 3


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_ranges_of_every_distribution_stay_within_their_bounds(method: str) -> None:
    parameters = {
        "lr": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"},
        "weight_decay": {"min": -9.0, "max": -2.0, "distribution": "log_uniform"},
        "dropout": {"min": 0.0, "max": 0.55, "distribution": "q_uniform", "q": 0.1},
        "batch_size": {"min": 20, "max": 70, "distribution": "q_log_uniform_values", "q": 8},
        "epochs": {"min": 3, "max": 9},
        "mode": {"values": ["head", "lora"]},
        "lora": {"parameters": {"rank": {"min": 2, "max": 16}}},
    }
    points, _ = search(method, 1, 12, lambda params: params["epochs"], parameters)  # `search` checks each point
    assert len(set(points)) == 12
    assert {len(point) for point in points} == {6, 7}, "rank applies to mode lora only"


def test_the_best_of_24_points_is_visited_early() -> None:
    spec = parse_spec(BUILT_IN)
    visits = [measure(SEARCHES["bayes"], spec, seed)[0] for seed in range(12)]

    assert sum(visit <= 10 for visit in visits) >= 6
    assert sorted(visits)[-2] <= 22
