"""The sweep file: what W&B's format means here, and how a fault is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inat_ft_sweeps.parameter import Parameter
from inat_ft_sweeps.parsing import check_models, check_values, parse_spec, read_spec, strategy_sweep
from inat_ft_sweeps.space import SweepSpec

from inat_ft.errors import ConfigError, UsageError
from inat_ft.registry import STRATEGIES, plugins


def spec_with(parameters, **more):
    return parse_spec({"method": "random", "parameters": parameters, **more})


def test_built_in_sweep_has_24_points_and_22_runs() -> None:
    spec = read_spec(None)

    assert (len(spec.points() or ()), spec.num_trials) == (24, 22)
    assert (spec.method, spec.metric.name, spec.metric.goal) == ("bayes", "val_accuracy", "maximize")
    assert spec.fixed == {"mode": "head", "patience": 3}
    config = spec.config({"epochs": 10, "dropout": 0.2, "batch_size": 32, "lr": 1e-3})
    assert (config.optim.epochs, config.model.dropout, config.optim.batch_size) == (10, 0.2, 32)
    assert (config.strategy.name, config.stop.patience, config.optim.lr) == ("head", 3, 1e-3)


def test_numbers_that_yaml_1_1_reads_as_text_are_numbers(tmp_path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "method: grid\nmetric: {name: val_accuracy, goal: maximize}\n"
        "parameters:\n  learning_rate: {values: [1e-3, '1e-4', 1E-5]}\n  weight_decay: {value: 1e-2}\n"
    )
    spec = read_spec(file)

    assert [point["learning_rate"] for point in spec.points() or ()] == [1e-3, 1e-4, 1e-5]
    assert spec.to_wandb()["parameters"]["learning_rate"]["values"] == [1e-3, 1e-4, 1e-5]
    assert spec.to_wandb()["parameters"]["weight_decay"]["value"] == 0.01


def test_nested_parameters_and_dotted_keys_are_the_same() -> None:
    nested = spec_with({"optim": {"parameters": {"lr": {"values": [0.1, 0.01]}}}})

    assert nested.points() == [{"optim.lr": 0.1}, {"optim.lr": 0.01}]
    assert nested.overrides({"optim.lr": 0.1}) == [("optim.lr", 0.1)]


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ({"min": 1, "max": 4}, [1, 2, 3, 4]),
        ({"min": 0.1, "max": 0.5, "distribution": "q_uniform", "q": 0.2}, [0.1, 0.3, 0.5]),
        ({"values": [5, 10, 5]}, [5, 10]),
        ({"value": 3}, [3]),
        ({"min": 30, "max": 50, "distribution": "q_log_uniform_values", "q": 8}, [32, 40, 48]),
        ({"min": 0.0, "max": 0.5}, None),
        ({"min": 1e-5, "max": 1e-1, "distribution": "log_uniform_values"}, None),
    ],
)
def test_possible_values(parameter, values) -> None:
    assert Parameter.model_validate(parameter).choices() == values


def test_log_uniform_bounds_are_exponents_as_for_wandb() -> None:
    low, high, _ = Parameter.model_validate({"distribution": "log_uniform", "min": -2, "max": 0}).extremes()

    assert (round(low, 6), high) == (0.135335, 1.0)


@given(st.integers(0, 50), st.integers(1, 50))
def test_whole_number_ranges_include_both_ends(low: int, width: int) -> None:
    choices = Parameter(min=low, max=low + width).choices()

    assert choices == list(range(low, low + width + 1))


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"parameters": {"lrr": {"values": [1]}}}, "'lrr': did you mean 'lr'"),
        ({"parameters": {"lr": {"min": 1.0}}}, "parameters.lr: needs one of"),
        ({"parameters": {"lr": {"value": 1, "values": [1]}}}, "parameters.lr: needs one of"),
        ({"parameters": {"lr": {"min": 2.0, "max": 1.0}}}, "min must be below max (got 2.0 and 1.0)"),
        ({"parameters": {"lr": {"distribution": "normal", "mu": 0}}}, "distribution 'normal' is not supported"),
        ({"parameters": {"lr": {"distribution": "unifrom", "min": 0.1, "max": 1}}}, "'unifrom' is unknown"),
        ({"parameters": {"lr": {"distribution": "q_log_uniform", "min": 0, "max": 1}}}, "use q_log_uniform_values"),
        ({"parameters": {"lr": {"distribution": "log_uniform", "min": 1e-4, "max": 0.1}}}, "mean e^0.0001 to e^0.1"),
        ({"parameters": {"lr": {"distribution": "log_uniform", "min": 1, "max": 1e5}}}, "exponents of e: 1 and 100000 mean"),
        ({"parameters": {"lr": {"distribution": "log_uniform_values", "min": -9, "max": 1}}}, "for exponents of e"),
        ({"parameters": {"lr": {"min": 1, "max": 10**400}}}, "parameters.lr: min and max must be numbers up to 1e+15"),
        ({"parameters": {"lr": {"values": list(range(20_000))}}}, "parameters.lr: values: at most 2,000 (got 20,000)"),
        ({"parameters": {"lr": {"min": 1, "max": 9, "q": 2}}}, "q is for distributions that round"),
        ({"parameters": {"lr": {"values": [0.1, [0.2]]}}}, "expected a number, a string, true, false or null (got [0.2])"),
        ({"parameters": {"lr": {"min": "a", "max": 1}}}, "parameters.lr: min must be a number (got 'a')"),
        ({"parameters": {"lr": {"distribution": "log_normal"}}}, "it is unbounded; use a distribution with min and max"),
        ({"parameters": {"lr": {"distribution": "inv_log_uniform_values"}}}, "the same distribution as log_uniform_values"),
        ({"parameters": {"lr": {"values": [1], "vlaues": 3}}}, "'vlaues' in parameters.lr: did you mean 'values'"),
        ({"early_terminate": {"type": "hyperband", "min_itr": 1}}, "did you mean 'min_iter'"),
        ({"parameters": {"lr": {"value": 1}, "learning_rate": {"value": 2}}}, "'lr' and 'learning_rate' both set optim.lr"),
        ({"run_cap": 0}, "run_cap"),
        ({"method": "baes"}, "method: 'baes' is not one of bayes, random, grid: did you mean 'bayes'?"),
        ({"method": "bayes", "metric": None}, "metric"),
        ({"metric": {"name": "test_loss"}}, "metric.name: 'test_loss' is not one of val_accuracy"),
        ({"metric": {"name": "val_accuracy"}}, "without a goal W&B minimizes the accuracy"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": True}}, "hyperband's 'strict' is not supported"),
        ({"method": "grid", "parameters": {"lr": {"min": 0.1, "max": 1.0}}}, "lr has more than 2,000"),
        ({"early_terminate": {"type": "hyperband"}}, "min_iter"),
        ({"parameters": {"lr": {"distribution": "int_uniform", "min": 0.5, "max": 4}}}, "must be integers (got 0.5 and 4)"),
        ({"parameters": {"lr": {"distribution": "uniform", "values": [1]}}}, "'uniform' cannot be combined with values"),
        ({"parameters": {"lr": {"distribution": "constant", "min": 1, "max": 2}}}, "cannot be combined with min and max"),
        ({"parameters": {"lr": {"values": [1, 2], "probabilities": [0.1, 0.9]}}}, "'probabilities' is not supported"),
        ({"parameters": {"lr": 3}}, "expected value, values, or min and max (got 3)"),
        ({"parameters": {"data.split": {"values": ["a.csv", "b.csv"]}}}, "a sweep cannot vary data.split"),
        ({"parameters": {"name": {"value": "a"}}}, "parameters.name: a sweep cannot vary name"),
        ({"controller": {"type": "local"}}, "'controller' is only for W&B's own schedulers"),
        ({"foo": 1}, "unknown key 'foo'"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_key(raw, named) -> None:
    whole = {"method": "random", "parameters": {"lr": {"values": [0.1]}}, **raw}

    with pytest.raises(ConfigError) as caught:
        parse_spec(whole)
    assert named in caught.value.message


def test_bayes_needs_a_metric() -> None:
    with pytest.raises(ConfigError, match="method bayes needs a metric"):
        parse_spec({"method": "bayes", "parameters": {"lr": {"values": [0.1, 0.2]}}})


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"lr": {"values": [0.1, -1]}}, r"optim.lr: -1 is not greater than 0"),
        ({"dropout": {"min": 0.0, "max": 1.5}}, r"model.dropout: 1.5 is not less than 1"),
        ({"mode": {"values": ["head", "hed"]}}, "'hed'"),
        ({"epochs": {"min": 1.0, "max": 9.0}}, r"optim.epochs: 3.96 is not an integer"),
        ({"optim.lrr": {"value": 1}}, "'lrr' in optim"),
    ],
)
def test_every_value_is_tried_before_anything_runs(parameters, named) -> None:
    with pytest.raises(ConfigError, match=named):
        check_values(spec_with(parameters))


def test_set_fixes_a_key_for_all_trials_whatever_its_name_in_the_file() -> None:
    spec = read_spec(None, [("optim.lr", 0.01), ("model.backbone", "resnet18")])

    assert len(spec.points() or ()) == 12
    assert spec.fixed == {"mode": "head", "patience": 3, "lr": 0.01, "model.backbone": "resnet18"}


def test_a_spec_survives_the_way_to_wandb_and_back() -> None:
    spec = read_spec(None)

    assert parse_spec(spec.to_wandb()) == spec


def test_an_endless_space_has_no_points_and_only_run_cap_limits_it() -> None:
    spec: SweepSpec = spec_with({"lr": {"min": 0.001, "max": 0.1}, "epochs": {"values": [1, 2]}})

    assert (spec.points(), spec.num_trials) == (None, None)


def test_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"no such file: nowhere\.yaml"):
        read_spec(Path("nowhere.yaml"))


def test_a_folder_and_bad_yaml_are_named_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder, not a YAML file"):
        read_spec(tmp_path)
    (tmp_path / "bad.yaml").write_text("method: grid\nparameters: {lr: {values: [1, 2}\n")
    with pytest.raises(UsageError, match=r"bad\.yaml is not valid YAML: line 2: "):
        read_spec(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    "parameters",
    [
        {"mode": {"value": "partial"}, "unfreeze_from": {"values": ["layer3", "layer9"]}},
        {"mode": {"values": ["head", "lora"]}, "lora.adapt_from": {"value": "layer9"}},
        {"mode": {"values": ["head", "surgical"]}, "surgical.block": {"values": ["auto", "layer9"]}},
    ],
)
def test_a_stage_that_the_network_does_not_have_is_refused_before_anything_runs(parameters) -> None:
    with pytest.raises(ConfigError, match=r"unknown stage 'layer9' for resnet18: did you mean.*\nthe trial:.*layer9"):
        check_models(spec_with({"backbone": {"value": "resnet18"}, **parameters}))
    check_models(spec_with({"backbone": {"value": "resnet18"}, "mode": {"values": ["head", "partial", "surgical"]}}))


MIXED = {
    "mode": {"values": ["head", "partial", "lora"]},
    "lr": {"values": [0.1, 0.2]},
    "unfreeze_from": {"values": ["layer3", "layer4"]},
    "lora": {"parameters": {"lr": {"values": [0.01, 0.02]}, "rank": {"value": 4}}},
}


def test_what_does_not_count_for_a_mode_is_not_in_its_trials() -> None:
    spec = spec_with(MIXED)

    assert spec.points() == [
        {"mode": "head", "lr": 0.1},
        {"mode": "head", "lr": 0.2},
        *({"mode": "partial", "lr": lr, "unfreeze_from": stage} for lr in (0.1, 0.2) for stage in ("layer3", "layer4")),
        {"mode": "lora", "lr": 0.01, "strategy.rank": 4},
        {"mode": "lora", "lr": 0.02, "strategy.rank": 4},
    ]
    assert spec.overrides({"mode": "head", "lr": 0.1}) == [("strategy.name", "head"), ("optim.lr", 0.1)]
    assert dict(spec.overrides((spec.points() or [])[-1])) == {
        "strategy.name": "lora",
        "optim.lr": 0.02,
        "strategy.rank": 4,
    }
    check_values(spec)
    assert parse_spec(spec.to_wandb()) == spec


def test_set_fixes_a_key_for_every_mode_and_a_mode_for_all_its_own_keys() -> None:
    assert read_spec(None, [("optim.lr", 0.3)], {"method": "random", "parameters": MIXED}).points() == [
        {"mode": "head"},
        {"mode": "partial", "unfreeze_from": "layer3"},
        {"mode": "partial", "unfreeze_from": "layer4"},
        {"mode": "lora", "strategy.rank": 4},
    ]
    assert read_spec(None, [("strategy.name", "head")], {"method": "random", "parameters": MIXED}).points() == [
        {"lr": 0.1},
        {"lr": 0.2},
    ]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"full": {"parameters": {"lr": {"value": 0.1}}}}, "full.lr: no trial of this sweep has mode full"),
        ({"lora.rnak": {"value": 3}}, "lora has no option 'rnak': did you mean 'rank'"),
        ({"strategy.decay": {"value": 0.3}}, "head and partial and lora have no option 'decay'"),
    ],
)
def test_what_counts_for_no_mode_is_refused(more, named) -> None:
    with pytest.raises(ConfigError, match=named):
        spec_with(MIXED | more)


def test_the_sweep_over_strategies_tries_each_in_its_own_space() -> None:
    raw, skipped = strategy_sweep()
    spec = read_spec(None, [("optim.epochs", 4)], raw)
    assert skipped == {}
    points = spec.points() or []

    assert set(spec.modes) == {
        plugin.name for (plugin, *_) in plugins(STRATEGIES).values() if plugin.package == "inat-ft"
    }
    assert {mode: sum(point["mode"] == mode for point in points) for mode in spec.modes} == dict.fromkeys(spec.modes, 2)
    assert {point["lr"] for point in points if point["mode"] == "full"} == {3e-5, 1e-4}
    assert all("lr" in point for point in points)
    assert [point["strategy.rank"] for point in points if point["mode"] == "lora"] == [4, 16]


def test_a_value_that_is_too_large_for_log_uniform_is_explained() -> None:
    with pytest.raises(ConfigError) as caught:
        check_values(spec_with({"dropout": {"distribution": "log_uniform", "min": -5, "max": 2}}))
    assert "model.dropout" in caught.value.message
    assert (
        "min and max of log_uniform (dropout) are exponents of e; for values use log_uniform_values"
        in caught.value.hint
    )


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ({}, "expected values for lr, epochs (got none)"),
        ({"lr": 0.1, "epochs": 3, "dropout": 0}, "expected values for lr, epochs (got lr, epochs, dropout)"),
        ({"lr": 0.5, "epochs": 3}, "lr=0.5 is not a possible value"),
        ({"lr": 0.1, "epochs": 9}, "epochs=9 is not a possible value"),
    ],
)
def test_a_point_outside_the_space_is_refused(point, says) -> None:
    spec = spec_with({"lr": {"values": [0.1, 0.2]}, "epochs": {"min": 1, "max": 8}})
    spec.check_point({"lr": 0.1, "epochs": 8})
    with pytest.raises(ValueError) as caught:
        spec.check_point(point)
    assert str(caught.value) == says


def test_a_grid_of_too_many_points_has_none() -> None:
    values = {"values": list(range(1, 60))}
    spec = spec_with({"epochs": values, "batch_size": values}, run_cap=5)
    assert spec.points() is None and spec.num_trials == 5
