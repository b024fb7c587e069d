"""Combine a YAML file, flags and `--set` into one RunConfig.

Overrides take precedence over the file, and the file over the defaults. An override is a dotted key and a value. Flags,
`--set` and the trials of a sweep all become overrides, so every trial can be repeated as a command line.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from inat_ft.config import BUILDERS, OptimConfig, RunConfig, build_tracker
from inat_ft.errors import ConfigError, UsageError, did_you_mean
from inat_ft.paths import ensure_home
from inat_ft.registry import STRATEGIES
from inat_ft.validation import LIST_KEYS, Flag, format_validation_error
from inat_ft.yaml_io import dump_yaml, parse_yaml, quote_yaml

Override = tuple[str, Any]

PLUGIN_FLAGS = {"strategy.unfreeze_from": (STRATEGIES, "partial")}
"""The flags of plugins' options, by key, with the built-in plugin that documents the option."""


def config_flags() -> Iterator[tuple[str, tuple[str, ...], FieldInfo]]:
    """Yield the key, the flag names and the field of each flag: `optim.lr`, `("--lr", "--learning-rate")`, ..."""
    for section, info in RunConfig.model_fields.items():
        fields = getattr(info.annotation, "model_fields", None)
        named = {f"{section}.{key}": field for key, field in fields.items()} if fields else {section: info}
        for key, field in named.items():
            for flag in (each for each in field.metadata if isinstance(each, Flag)):
                yield key, flag.names or (f"--{key.rpartition('.')[2].replace('_', '-')}",), field


ALIASES = {
    name[2:].replace("-", "_"): key for key, names, _ in config_flags() for name in names if name.startswith("--")
} | {key.rpartition(".")[2]: key for key in PLUGIN_FLAGS}
"""The short keys, which are the names of the flags, and the dotted key of each: `lr` is `optim.lr`."""


_MAX_CHARACTERS = 10_000_000
_TEXT_FILE = "write lines of the form `key: value`, in UTF-8"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises UsageError if the file is missing or is not a mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)  # a device has no end
        if len(text) > _MAX_CHARACTERS:
            raise UsageError(f"{path} has more than {_MAX_CHARACTERS:,} characters", _TEXT_FILE)
        loaded = parse_yaml(text)
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}", f"paths are relative to {Path.cwd()}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a YAML file", "name a file in it") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = f"{path} is not valid YAML: {where}{error.problem}"
        raise UsageError(problem, "fix that line, or quote its value") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read {path} as YAML: {str(error).splitlines()[0]}", _TEXT_FILE) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds a {type(loaded).__name__}, not a mapping of keys to values", _TEXT_FILE)
    return loaded


def parse_override(text: str) -> Override:
    """Split `optim.lr=3e-4` into a dotted key and a value. Raises ConfigError if the text has another form."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{text}' does not have the form key=value", "for example: --set optim.lr=3e-4")
    try:
        return expand_key(key.strip()), parse_yaml(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        message, hint = f"the value of override '{text}' is not valid YAML: {problem}", f"--set '{key}=\"...\"'"
        raise ConfigError(message, f"to pass it as text: {hint}") from None


def format_override(key: str, value: Any) -> str:
    """Return `key=value` such that `parse_override` returns the same value."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value)}"
    try:
        same = parse_yaml(value) == value
    except yaml.YAMLError:
        same = False
    return f"{key}={value if same else quote_yaml(value)}"


def expand_key(key: str) -> str:
    """Return the dotted key of a short or dotted key. Raises ConfigError, with the most similar key, if it is unknown."""
    if "." in key:
        section = key.partition(".")[0]
        if section not in RunConfig.model_fields:
            near = did_you_mean(section, RunConfig.model_fields)
            raise ConfigError(f"unknown section '{section}'{near}", f"known: {', '.join(RunConfig.model_fields)}")
        return key
    if key not in ALIASES:
        raise ConfigError(f"unknown key '{key}'{did_you_mean(key, tuple(ALIASES))}", LIST_KEYS)
    return ALIASES[key]


def load_config(
    start: str | os.PathLike[str] | RunConfig | None = None, overrides: Iterable[Override] = ()
) -> RunConfig:
    """Return a configuration file, a configuration or the defaults, with the overrides. Raises UsageError or PluginError."""
    if isinstance(start, RunConfig):
        raw = start.model_dump(mode="json")
    else:
        raw = _located(read_yaml(Path(start)), Path(start).parent) if start is not None else {}
    for key, value in overrides:
        _assign(raw, key, value)
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise format_validation_error(error, RunConfig) from None
    folders = {Path.cwd(): "", ensure_home() or Path.home(): "~"}
    return _map_paths(config, lambda path: _shorten(path, folders))


_PATHS = (("data", "split"), ("data", "root"), ("model", "weights"))
"""The keys with paths as values. Weights can also be a name."""


def _located(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve the relative paths in a file's settings, in place.

    A relative path refers to the file's folder if it exists there, else to the working folder. If a run's folder was moved
    and neither exists, the path without its `..` parts is tried.
    """
    for section, key in _PATHS:
        inner = raw.get(section)
        if isinstance(inner, dict) and isinstance(path := inner.get(key), str) and path:
            beside = Path(os.path.normpath(folder.resolve() / path))
            below = Path(*(part for part in Path(path).parts if part != ".."))
            places = (beside, Path(path), below)
            inner[key] = next((str(each) for each in places if os.path.exists(each) and each.parts), path)
    return raw


def _map_paths(config: RunConfig, change: Callable[[str], str]) -> RunConfig:
    for section, key in _PATHS:
        if path := getattr(getattr(config, section), key):
            changed = getattr(config, section).model_copy(update={key: change(path)})
            config = config.model_copy(update={section: changed})
    return config


def portable(config: RunConfig, directory: Path) -> RunConfig:
    """Return the configuration with paths relative to the run's directory, so that the project can be moved."""
    here, inside = Path.cwd(), directory.resolve()

    def change(path: str) -> str:
        if path.startswith("~") or Path(path).is_absolute() or not Path(path).exists():
            return path
        whole = Path(os.path.abspath(path))
        if inside.is_relative_to(here) and whole.is_relative_to(here):
            return Path(os.path.relpath(whole, inside)).as_posix()
        return _shorten(str(whole), {ensure_home() or Path.home(): "~"})

    return _map_paths(config, change)


def _shorten(path: str, folders: Mapping[Path, str]) -> str:
    """Return an absolute path in terms of the first of the folders that it is in."""
    whole = expand_user(path)
    found = next((folder for folder in folders if whole.is_absolute() and whole.is_relative_to(folder)), None)
    return path if found is None else Path(folders[found], whole.relative_to(found)).as_posix()


def expand_user(path: str) -> Path:
    """Replace `~` and `~user` at the start of a path. Raises ConfigError if that home folder does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = path.replace("\\", "/").partition("/")[0]
        raise ConfigError(f"{path}: there is no home folder {user}", "use an absolute path") from None


_KEPT: dict[str, tuple[str, ...]] = {
    "strategy.name": (),
    "model.backbone": ("dropout",),
    "optim.optimizer": tuple(OptimConfig.model_fields),
}
"""The keys that name a plugin, and the keys of their section that do not belong to the plugin."""


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. Another plugin removes the options of the previous one; mappings are merged."""
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
    """Return the configuration as YAML, which `--config` reads back as the same RunConfig."""
    return dump_yaml(config.model_dump(mode="json"))


def describe(config: RunConfig) -> list[dict[str, str]]:
    """Return every key with its value and its documentation, including the options of plugins."""
    fields: dict[str, FieldInfo] = {}
    for name, field in RunConfig.model_fields.items():
        section = getattr(config, name)
        models = [section, BUILDERS[name](section)] if name in BUILDERS else [section]
        for model in models if isinstance(section, BaseModel) else ():
            fields |= {f"{name}.{key}": info for key, info in type(model).model_fields.items() if key != "variant"}
        if not isinstance(section, BaseModel):
            fields[name] = field
    for name, options in config.track.options.items():
        fields |= {f"track.{name}.{key}": info for key, info in type(build_tracker(name, options)).model_fields.items()}
    values = config.model_dump()
    return [
        {"key": key, "value": str(reduce(getitem, key.split("."), values)), "help": info.description or ""}
        for key, info in fields.items()
    ]
