from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_ft.config import RunConfig
from inat_ft.errors import ConfigError, UsageError
from inat_ft.settings import SHORT_KEYS, describe, dump_config, load_config, parse_override, parse_yaml


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [parse_override(text) for text in overrides])
    return caught.value.message


def test_defaults_are_those_of_the_task() -> None:
    config = load_config()
    assert config.strategy.name == "head"
    assert (config.model.backbone, config.model.weights, config.model.dropout) == ("resnet50", "imagenet", 0.3)
    assert (config.optim.optimizer, config.optim.lr, config.optim.epochs, config.optim.batch_size) == (
        "adam",
        1e-4,
        5,
        64,
    )
    assert config.stop.patience == 3


@pytest.mark.parametrize("setting", ["optim.average=wise-ft", "optim.regularize=l2-sp"])
def test_what_keeps_to_the_start_needs_a_start(setting: str) -> None:
    assert "those are random here: cnn has weights none" in refused("model.backbone=cnn", setting)
    assert load_config(None, [parse_override(setting)]).model.weights == "imagenet"


def test_a_network_without_weights_is_trained_whole() -> None:
    config = load_config(None, [("model.backbone", "cnn")])
    assert (config.model.weights, config.strategy.name) == ("none", "full")
    assert config.model.options["filters"] == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.droput=0.3", "unknown key 'droput' in model: did you mean 'dropout'?"),
        ("optim.epohs=3", "unknown key 'epohs' in optim: did you mean 'epochs'?"),
        ("droput=0.3", "unknown key 'droput': did you mean 'dropout'?"),
        ("modle.dropout=0.3", "unknown section 'modle': did you mean 'model'?"),
        ("mode=partail", "unknown strategy 'partail': did you mean 'partial'?"),
        ("optim.lr=-1", "optim.lr: input should be greater than 0 (got -1)"),
        (
            "epochs=many",
            "optim.epochs: input should be a valid integer, unable to parse string as an integer (got 'many')",
        ),
        ("schedule=cosin", "optim.schedule: 'cosin' is not one of constant, cosine: did you mean 'cosine'?"),
        ("strategy.unfreeze_from=layer3", "unknown key 'unfreeze_from' in strategy: 'head' has no options"),
        ("warmup_epochs=9", "optim.warmup_epochs is longer than optim.epochs, 5"),
        ("optim=3", "unknown key 'optim': did you mean"),
    ],
)
def test_errors_name_key_value_and_the_nearest_right_one(override: str, message: str) -> None:
    assert refused(override).startswith(message)


def test_an_override_must_have_a_value() -> None:
    with pytest.raises(ConfigError, match="override 'lr' is not of the form key=value"):
        parse_override("lr")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("off", "off"), ("on", "on"), ("5", 5), ("true", True), ("1.5", 1.5)]
)
def test_yaml_reads_numbers_as_numbers_and_words_as_words(text: str, value: object) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    for name in ("list.yaml", "broken.yaml", "missing.yaml"):
        with pytest.raises(UsageError, match=name):
            load_config(tmp_path / name)


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("optim: {lr: 1e-3, epochs: 7}\nstrategy: {name: partial, unfreeze_from: layer4}\n")
    config = load_config(file, [("optim.lr", 0.5)])
    assert (config.optim.lr, config.optim.epochs) == (0.5, 7)
    assert config.strategy.options == {"unfreeze_from": "layer4"}
    assert load_config(file, [("strategy.name", "head")]).strategy.options == {}


@given(
    st.sampled_from(["head", "partial", "full"]),
    st.floats(1e-8, 10),
    st.integers(1, 100),
    st.floats(0, 0.99),
    st.sampled_from(["resnet18", "cnn", "vgg11"]),
    st.integers(0, 2**32 - 1),
)
def test_a_dumped_configuration_comes_back_as_it_was(mode, lr, epochs, dropout, backbone, seed) -> None:
    settings = {"strategy.name": mode, "optim.lr": lr, "optim.epochs": epochs, "model.dropout": dropout}
    config = load_config(None, [*settings.items(), ("model.backbone", backbone), ("seed", seed)])
    assert RunConfig.model_validate(parse_yaml(dump_config(config))) == config


def test_every_key_is_documented_and_every_short_key_exists() -> None:
    lines = {line["key"]: line for line in describe(load_config(None, [("strategy.name", "partial")]))}
    assert all(line["help"] for line in lines.values())
    assert set(SHORT_KEYS.values()) <= set(lines)
