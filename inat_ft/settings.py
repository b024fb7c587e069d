"""How a YAML file, flags and `--set` become one RunConfig.

Defaults < file < overrides. An override is a dotted key and a value; flags, `--set`, the local sweep and W&B's agent
all end in the same list, so that every trial is a command line that can be pasted.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from inat_ft.config import RunConfig, build_backbone, build_strategy, explain
from inat_ft.errors import ConfigError, UsageError, did_you_mean

Override = tuple[str, Any]

SHORT_KEYS = {
    "mode": "strategy.name",
    "unfreeze_from": "strategy.unfreeze_from",
    "backbone": "model.backbone",
    "weights": "model.weights",
    "dropout": "model.dropout",
    "split": "data.split",
    "root": "data.root",
    "image_size": "data.image_size",
    "eval_image_size": "data.eval_image_size",
    "resize": "data.resize",
    "augment": "data.augment",
    "views": "data.views",
    "balance": "data.balance",
    "epochs": "optim.epochs",
    "batch_size": "optim.batch_size",
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "optimizer": "optim.optimizer",
    "weight_decay": "optim.weight_decay",
    "label_smoothing": "optim.label_smoothing",
    "schedule": "optim.schedule",
    "warmup_epochs": "optim.warmup_epochs",
    "layer_decay": "optim.layer_decay",
    "clip_norm": "optim.clip_norm",
    "mixup": "optim.mixup",
    "cutmix": "optim.cutmix",
    "regularize": "optim.regularize",
    "average": "optim.average",
    "alpha": "optim.alpha",
    "accumulate": "optim.accumulate",
    "patience": "stop.patience",
    "monitor": "stop.monitor",
    "device": "compute.device",
    "precision": "compute.precision",
    "workers": "compute.workers",
    "cache": "compute.cache",
    "compile": "compute.compile",
    "deterministic": "compute.deterministic",
    "wandb": "track.wandb",
}
"""The words that people type every day, and the dotted key that each stands for."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `1e-3` is a number, and `on`, `off`, `yes`, `no` are words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, by YAML 1.2's rules for numbers and booleans. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UsageError naming the file when it is missing or holds something else."""
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}", f"paths count from {Path.cwd()}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a YAML file", "name the file in it") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(
            f"{path} is no valid YAML: {where}{error.problem}", "mend that line, or quote its value"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read {path} as YAML: {str(error).splitlines()[0]}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds a {type(loaded).__name__}, not a mapping of keys to values")
    return loaded


def parse_override(text: str) -> Override:
    """`optim.lr=3e-4` as a dotted key and a value. Raises ConfigError for anything not of that form."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{text}' is not of the form key=value", "for example: --set optim.lr=3e-4")
    try:
        return dotted(key.strip()), parse_yaml(value)
    except yaml.YAMLError:
        raise ConfigError(
            f"the value of override '{text}' is not valid YAML", f"quote it: --set '{key}=\"...\"'"
        ) from None


def dotted(key: str) -> str:
    """The dotted key that a word stands for. Raises ConfigError naming the nearest known one."""
    if "." in key:
        section = key.partition(".")[0]
        if section not in RunConfig.model_fields:
            raise ConfigError(f"unknown section '{section}'{did_you_mean(section, tuple(RunConfig.model_fields))}")
        return key
    if key in SHORT_KEYS:
        return SHORT_KEYS[key]
    if key in ("name", "seed"):
        return key
    known = ("name", "seed", *SHORT_KEYS)
    raise ConfigError(f"unknown key '{key}'{did_you_mean(key, known)}", "every key: inat-ft train --show-config")


def load_config(file: Path | None = None, overrides: Iterable[Override] = ()) -> RunConfig:
    """The configuration of defaults, file and overrides, in this order. Raises UsageError or PluginError."""
    raw = read_yaml(file) if file else {}
    for key, value in overrides:
        _assign(raw, key, value)
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise explain(error, RunConfig) from None
    data = {key: _without_user(path) for key in ("split", "root") if (path := getattr(config.data, key))}
    weights = _without_user(config.model.weights) if config.model.weights else None
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": config.model.model_copy(update={"weights": weights}),
        }
    )


def _without_user(path: str) -> str:
    """A path as a record may keep it: relative where it lies below the working folder, else with ~ for the home folder."""
    whole = Path(path).expanduser()
    if not whole.is_absolute():
        return path
    for folder, shown in ((Path.cwd(), Path()), (Path.home(), Path("~"))):
        if whole.is_relative_to(folder):
            return (shown / whole.relative_to(folder)).as_posix()
    return path


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. Choosing another strategy or backbone drops the options of the one before."""
    *sections, last = key.split(".")
    if key in ("strategy.name", "model.backbone"):
        before = raw.get(sections[0])
        if isinstance(before, Mapping) and before.get(last) not in (None, value):
            raw[sections[0]] = {name: before[name] for name in ("dropout",) if name in before}
    for section in sections:
        inner = raw.get(section)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{section}: expected a section of keys (got {inner!r})")
        if inner is None:
            raw[section] = inner = {}
        raw = inner
    raw[last] = value


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML that `--config` takes back to the same RunConfig."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe(config: RunConfig) -> list[dict[str, str]]:
    """Every key with its value and its help, from the fields' own docstrings; plugins' options included."""
    plugins = {"model": build_backbone(config.model), "strategy": build_strategy(config.strategy)}
    lines = []
    for name, field in RunConfig.model_fields.items():
        value = getattr(config, name)
        if not isinstance(value, BaseModel):
            lines.append({"key": name, "value": str(value), "help": field.description or ""})
            continue
        fields = dict(type(value).model_fields)
        if name in plugins:
            fields |= {key: info for key, info in type(plugins[name]).model_fields.items() if key != "variant"}
        for key, info in fields.items():
            lines.append({"key": f"{name}.{key}", "value": str(getattr(value, key)), "help": info.description or ""})
    return lines
