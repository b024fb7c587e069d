"""How a YAML file, flags and `--set` become one RunConfig.

Defaults < file < overrides. An override is a dotted key and a value; flags, `--set`, the local sweep and W&B's agent
all end in the same list, so that every trial is a command line that can be pasted.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from inat_ft.config import (
    OptimConfig,
    RunConfig,
    build_backbone,
    build_optimizer,
    build_strategy,
    build_tracker,
    format_validation_error,
)
from inat_ft.errors import ConfigError, UsageError, did_you_mean
from inat_ft.yaml_io import dump_yaml, parse_yaml, quote_yaml

Override = tuple[str, Any]

ALIASES = {
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
            f"{path} is not valid YAML: {where}{error.problem}", "correct that line, or quote its value"
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
        return expand_key(key.strip()), parse_yaml(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"the value of override '{text}' is not valid YAML: {problem}", f"to pass it as text: --set '{key}=\"...\"'"
        ) from None


def format_override(key: str, value: Any) -> str:
    """`key=value` that `parse_override` reads back as the same value."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value)}"
    try:
        same = parse_yaml(value) == value
    except yaml.YAMLError:
        same = False
    return f"{key}={value if same else quote_yaml(value)}"


def expand_key(key: str) -> str:
    """The dotted key that a word stands for. Raises ConfigError naming the nearest known one."""
    if "." in key:
        section = key.partition(".")[0]
        if section not in RunConfig.model_fields:
            raise ConfigError(f"unknown section '{section}'{did_you_mean(section, tuple(RunConfig.model_fields))}")
        return key
    if key in ALIASES:
        return ALIASES[key]
    if key in ("name", "seed"):
        return key
    known = ("name", "seed", *ALIASES)
    raise ConfigError(f"unknown key '{key}'{did_you_mean(key, known)}", "every key: inat-ft train --show-config")


def load_config(file: Path | None = None, overrides: Iterable[Override] = ()) -> RunConfig:
    """The configuration of defaults, file and overrides, in this order. Raises UsageError or PluginError."""
    raw = _located(read_yaml(file), file.parent) if file else {}
    for key, value in overrides:
        _assign(raw, key, value)
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise format_validation_error(error, RunConfig) from None
    data = {key: _portable_path(path) for key in ("split", "root") if (path := getattr(config.data, key))}
    weights = _portable_path(config.model.weights) if config.model.weights else None
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": config.model.model_copy(update={"weights": weights}),
        }
    )


_PATHS = (("data", "split"), ("data", "root"), ("model", "weights"))
"""The keys whose values are paths; weights may also be a name."""


def _located(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a file with its paths as they count from here.

    A relative path counts from the file's folder if there is something, else from the working folder. The last candidate
    is for a run whose folder was moved: its paths lead out of a folder that is no longer beside the splits.
    """
    for section, key in _PATHS:
        inner = raw.get(section)
        path = inner.get(key) if isinstance(inner, dict) else None
        if inner is None or not isinstance(path, str) or not path or path.startswith("~") or Path(path).is_absolute():
            continue
        beside = Path(os.path.normpath(folder.resolve() / path))
        below = Path(*(part for part in Path(path).parts if part != ".."))
        inner[key] = next((str(each) for each in (beside, Path(path), below) if each.exists() and each.parts), path)
    return raw


def portable(config: RunConfig, directory: Path) -> RunConfig:
    """The configuration as it is kept in a run's directory: paths in the same project are relative to that directory.

    Both can then be moved together, and the run can be resumed from any working folder.
    """
    here, inside = Path.cwd(), directory.resolve()
    kept: dict[str, dict[str, str]] = {}
    for section, key in _PATHS:
        path = getattr(getattr(config, section), key)
        if path is None or path.startswith("~") or Path(path).is_absolute() or not Path(path).exists():
            continue
        whole = Path(os.path.abspath(path))
        relative = inside.is_relative_to(here) and whole.is_relative_to(here)
        kept.setdefault(section, {})[key] = (
            Path(os.path.relpath(whole, inside)).as_posix() if relative else _portable_path(str(whole), outside=True)
        )
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in kept.items()}
    return config.model_copy(update=sections)


def _portable_path(path: str, outside: bool = False) -> str:
    """A path as a record may keep it: relative where it lies below the working folder, else with ~ for the home folder.

    outside: from another folder it would be wrong to count from the working folder.
    """
    whole = expand_user(path)
    if not whole.is_absolute():
        return path
    for folder, shown in ((None if outside else Path.cwd(), Path()), (_home(), Path("~"))):
        if folder and whole.is_relative_to(folder):
            return (shown / whole.relative_to(folder)).as_posix()
    return path


def expand_user(path: str) -> Path:
    """A path with `~` and `~user` replaced by a home folder. Raises ConfigError when there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = path.replace("\\", "/").partition("/")[0]
        raise ConfigError(f"{path}: there is no home folder {home}", "write the whole path, without ~") from None


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


_KEPT: dict[str, tuple[str, ...]] = {
    "strategy.name": (),
    "model.backbone": ("dropout",),
    "optim.optimizer": tuple(OptimConfig.model_fields),
}
"""The keys that name a plugin, and the other keys of their section that do not belong to the plugin."""


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. Another plugin drops the options of the previous one; mappings are merged."""
    *sections, last = key.split(".")
    if key in _KEPT:
        before = raw.get(sections[0])
        if isinstance(before, Mapping) and before.get(last) not in (None, value):
            raw[sections[0]] = {name: before[name] for name in _KEPT[key] if name in before}
    for section in sections:
        inner = raw.get(section)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{section}: expected a section of keys (got {inner!r})")
        if inner is None:
            raw[section] = inner = {}
        raw = inner
    before = raw.get(last)
    raw[last] = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML that `--config` takes back to the same RunConfig."""
    return dump_yaml(config.model_dump(mode="json"))


def describe(config: RunConfig) -> list[dict[str, str]]:
    """Every key with its value and its help, from the fields' own docstrings; plugins' options included."""
    plugins = {
        "model": build_backbone(config.model),
        "strategy": build_strategy(config.strategy),
        "optim": build_optimizer(config.optim),
    }
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
    for name, options in config.track.options.items():
        for key, info in type(build_tracker(name, options)).model_fields.items():
            lines.append({"key": f"track.{name}.{key}", "value": str(options[key]), "help": info.description or ""})
    return lines
