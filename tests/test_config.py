import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_ft.config import RunConfig
from inat_ft.errors import ConfigError, UsageError
from inat_ft.settings import (
    ALIASES,
    describe,
    dump_config,
    format_override,
    load_config,
    parse_override,
    portable,
    read_yaml,
)
from inat_ft.yaml_io import dump_yaml, parse_yaml


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
    assert "needs pretrained weights, but the weights of cnn are none" in refused("model.backbone=cnn", setting)
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
        ("optim.lr=-1", "optim.lr: -1 is not greater than 0"),
        (
            "epochs=many",
            "optim.epochs: 'many' is not an integer",
        ),
        ("schedule=cosin", "optim.schedule: 'cosin' is not one of constant, cosine: did you mean 'cosine'?"),
        ("strategy.unfreeze_from=layer3", "--mode head has no option --unfreeze-from"),
        ("model.filters=3", "unknown key 'filters' in model: 'resnet50' has "),
        ("warmup_epochs=9", "optim.warmup_epochs is greater than optim.epochs, 5"),
        ("optim=3", "unknown key 'optim': did you mean"),
        ("compute.device=tpu", "compute.device: 'tpu' is not allowed; expected auto, cpu, cuda, cuda:N or mps"),
        ("name=my run", "name: 'my run' is not allowed; expected letters, digits, dots, hyphens and underscores"),
        ("optim.lr=nan", "optim.lr: nan is not a finite number"),
    ],
)
def test_errors_name_key_value_and_the_nearest_right_one(override: str, message: str) -> None:
    assert refused(override).startswith(message)


def test_an_override_must_have_a_value() -> None:
    with pytest.raises(ConfigError, match="override 'lr' does not have the form key=value"):
        parse_override("lr")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("064", 64), ("0123", 123), ("0o17", 15), ("0x1F", 31), ("+5", 5), ("-08", -8), ("[08, 016]", [8, 16])),
        *(("1e-3", 1e-3), ("1E5", 1e5), ("1.5", 1.5), ("1.", 1.0), (".5", 0.5), ("-.inf", float("-inf"))),
        *((word, word) for word in ("off", "on", "yes", "No", "y", "tRue", "0x_", "0b1", "1_000", "0o8", "+", ".")),
        *(
            (word, word)
            for word in ("12:30:45", "190:20:30", "2024-01-01", "=", "695e", "~x", "nulL", "0x", "1e", ".e3")
        ),
        *(("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None)),
        *(("!!str 12", "12"), ("!!int 0x1F", 31), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]})),
    ],
)
def test_yaml_follows_the_core_schema_of_version_1_2(text: str, value: object) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def bomb(form: str) -> str:
    lines = (f"k{level}: &a{level} {form.format(', '.join([f'*a{level - 1}'] * 10))}\n" for level in range(1, 7))
    return "".join(["k0: &a0 {a: 1}\n", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: 0.1\n  lr: 0.0001\n", "line 3: the key 'lr' is a duplicate"),
        ("seed: 1\n'seed': 2\n", "line 2: the key 'seed' is a duplicate"),
        ("seed: !!int x", "line 1: 'x' is not of the type int"),
        ("seed: !!bool x", "line 1: 'x' is not of the type bool"),
        ("seed: !!null x", "line 1: 'x' is not of the type null"),
        ("seed: !!timestamp 2024-99-99", "line 1: the tag !!timestamp is not supported"),
        ("seed: !!python/object/apply:os.getcwd []", "is not supported"),
        ("seed: !!map x", "line 1: expected a mapping node"),
        ("seed: " + "9" * 5000, "line 1: a number of 5,000 characters is too long"),
        ("seed: 0x" + "f" * 9000, "line 1: a number of 9,002 characters is too long"),
        ("seed: " + "[" * 9000, "line 1: it is nested too deep"),
        ("seed:\n " + "[" * 101 + "]" * 101, "line 2: it is nested too deep"),
        (bomb("[{}]"), "line 6: it has more than 100,000 values"),
        (bomb("{{<<: [{}]}}"), "line 6: it has more than 100,000 values"),
        ("a: 1\nb: &b [1, *b]", "line 2: it has more than 100,000 values, or contains itself"),
        ("a: \x07", "not allowed"),
        ("a: [1", "line 1: expected"),
        ("? [1]\n: 2", "line 1: found unhashable key"),
    ],
)
def test_yaml_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_yaml(tmp_path / "c.yaml")
    assert str(tmp_path / "c.yaml") in caught.value.message and message in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse_override(f"seed={text}")


@pytest.mark.parametrize("value", ["~nosuchuser/x", "~nosuchuser"])
@pytest.mark.parametrize("key", ["data.split", "data.root", "model.weights"])
def test_a_home_folder_that_does_not_exist_is_refused(key: str, value: str) -> None:
    assert refused(f"{key}={value}") == f"{value}: there is no home folder ~nosuchuser"


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


_LOOK_ALIKES = ["1e3", "695e0514", "0x10", "0o17", "064", "null", "Null", "true", "NO", "off", "1.5", ".inf", "1_000"]
_LOOK_ALIKES += ["12:30:45", "2024-01-01"]
_TEXTS = st.text() | st.sampled_from(
    [*_LOOK_ALIKES, "~", "=", "<<", "", " ", "- a", "a: b", "#x", "'", '"', "a\n\nb\n", "\t"]
)


@given(
    st.sampled_from(["head", "partial", "full"]),
    st.floats(1e-8, 10),
    st.integers(1, 100),
    st.floats(0, 0.99),
    st.sampled_from(["resnet18", "cnn", "vgg11"]),
    st.integers(0, 2**32 - 1),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
    | st.sampled_from([word for word in _LOOK_ALIKES if not {":", "_"} & set(word) and word[0] != "."]),
    _TEXTS,
)
def test_a_dumped_configuration_comes_back_as_it_was(mode, lr, epochs, dropout, backbone, seed, name, text) -> None:
    settings = {"strategy.name": mode, "optim.lr": lr, "optim.epochs": epochs, "model.dropout": dropout, "name": name}
    settings |= {"track.project": text, "track.entity": text}
    config = load_config(None, [*settings.items(), ("model.backbone", backbone), ("seed", seed)])
    assert RunConfig.model_validate(parse_yaml(dump_config(config))) == config


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=10,
)


@given(_VALUES)
def test_dumped_yaml_comes_back_as_it_was(value: object) -> None:
    loaded = parse_yaml(dump_yaml(value))
    assert loaded == value and repr(loaded) == repr(value)


@given(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS
)
def test_an_override_that_is_shown_can_be_pasted(value: object) -> None:
    assert parse_override(format_override("track.project", value)) == ("track.project", value)


def test_paths_in_a_file_count_from_its_folder_or_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "project" / "runs" / "r"
    (tmp_path / "project" / "splits").mkdir(parents=True)
    run.mkdir(parents=True)
    (tmp_path / "project" / "splits" / "data.csv").touch()
    (tmp_path / "project" / "w.pth").touch()
    monkeypatch.chdir(tmp_path / "project")
    given = load_config(None, [("data.split", "splits/data.csv"), ("model.weights", "w.pth"), ("data.root", "/images")])
    (run / "config.yaml").write_text(dump_config(portable(given, run)))
    (run / "old.yaml").write_text(dump_config(given))
    kept = read_yaml(run / "config.yaml")
    assert (kept["data"]["split"], kept["data"]["root"]) == ("../../splits/data.csv", "/images")
    assert kept["model"]["weights"] == "../../w.pth"
    for name in ("config.yaml", "old.yaml"):
        assert load_config(run / name) == given
    run.rename(tmp_path / "moved")
    assert load_config(tmp_path / "moved" / "config.yaml") == given
    (tmp_path / "moved").rename(run)
    (tmp_path / "project").rename(tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "elsewhere" / "runs" / "r" / "config.yaml")
    assert Path(config.data.split or "").resolve() == tmp_path / "elsewhere" / "splits" / "data.csv"
    assert Path(config.model.weights or "").resolve() == tmp_path / "elsewhere" / "w.pth"


def test_paths_outside_the_project_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "project" / "data.csv").touch()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", "/nowhere")
    config = portable(load_config(None, [("data.split", "data.csv")]), tmp_path / "runs" / "r")
    assert config.data.split == str(tmp_path / "project" / "data.csv")
    assert config.model.weights == "imagenet"


def test_every_key_is_documented_and_every_short_key_exists() -> None:
    lines = {line["key"]: line for line in describe(load_config(None, [("strategy.name", "partial")]))}
    assert all(line["help"] for line in lines.values())
    assert set(ALIASES.values()) <= set(lines)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no such device")
def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="/dev/zero has more than 10,000,000 characters"):
        load_config("/dev/zero")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="the system has no such folder")
def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    """As of `--config <(command)` in a shell."""
    reader, writer = os.pipe()
    os.write(writer, b"optim: {epochs: 7}")
    os.close(writer)
    assert load_config(f"/dev/fd/{reader}").optim.epochs == 7
    os.close(reader)
