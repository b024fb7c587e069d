"""From a file to a sweep that can be run: read, with some keys fixed, and every value tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from inat_ft.errors import ConfigError, InatFtError
from inat_ft.settings import Override, read_yaml
from inat_ft.sweeps.conditional import MODE, options, target
from inat_ft.sweeps.defaults import BUILT_IN
from inat_ft.sweeps.space import Params, SweepSpec
from inat_ft.validation import format_validation_error
from inat_ft.yaml_io import parse_yaml

_CHECKED_POINTS = 500


def read_spec(file: Path | None, fixed: Sequence[Override] = (), raw: Any = BUILT_IN) -> SweepSpec:
    """The sweep of a file, or of `raw`, with some settings fixed for all trials; every value is checked.

    Raises ConfigError naming the key and the value, UsageError when the file cannot be read.
    """
    spec = parse_spec(read_yaml(file) if file else raw)
    if fixed:
        spec = _fix(spec, dict(fixed))
    check_values(spec)
    return spec


def _fix(spec: SweepSpec, fixed: Mapping[str, Any]) -> SweepSpec:
    """The sweep with some keys fixed; with the mode fixed, what counts for other modes only goes."""
    kept, named, mode = {}, dict(zip(fixed, fixed, strict=True)), fixed.get(MODE)
    for name, parameter in spec.parameters.items():
        owner, key = target(name)
        foreign = mode and (owner not in (None, mode) or (key.startswith("strategy.") and key not in options(mode)))
        if key in fixed:
            named[key] = named[key] if owner else name
        elif not foreign:
            kept[name] = parameter.model_dump(exclude_unset=True)
    values = {named[key]: {"value": value} for key, value in fixed.items()}
    return parse_spec({**spec.to_wandb(), "parameters": kept | values})


def parse_spec(raw: Any) -> SweepSpec:
    """The sweep in a mapping. Raises ConfigError naming the key."""
    try:
        return SweepSpec.model_validate(_numbers(raw))
    except ValidationError as error:
        lines = [_finding(finding) for finding in error.errors()]
        found = format_validation_error(error, SweepSpec).message.splitlines()
        text = [line or plain for line, plain in zip(lines, [*found, *[""] * len(lines)], strict=False)]
        raise ConfigError(
            "\n".join(text), "the format is W&B's: https://docs.wandb.ai/models/sweeps/define-sweep-configuration"
        ) from None


def _finding(finding: Any) -> str:
    """The line for an error of our own, with the key that it stands at; empty for pydantic's."""
    if finding["type"] != "value_error":
        return ""
    where = ".".join(str(part) for part in finding["loc"])
    text = str(finding["ctx"]["error"])
    return text if not where or text.startswith(where) else f"{where}: {text}"


def _numbers(raw: Any) -> Any:
    """Words such as `1e-3`, which YAML 1.1 and quotes leave as text, as numbers, at every depth."""
    if isinstance(raw, Mapping):
        return {str(key): _numbers(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_numbers(value) for value in raw]
    if isinstance(raw, str) and raw[:1] in set("+-.0123456789"):
        try:
            value = parse_yaml(raw)
        except yaml.YAMLError:
            return raw
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else raw
    return raw


def check_values(spec: SweepSpec) -> None:
    """Try every possible value against the configuration. Raises ConfigError naming the parameter and the value."""
    for point in tried(spec):
        try:
            spec.config(point)
        except InatFtError as error:
            raise invalid_trial(spec, point, error) from None


def invalid_trial(spec: SweepSpec, point: Params, error: InatFtError) -> ConfigError:
    """Why a trial of the sweep cannot be run."""
    shown = ", ".join(f"{name}={value}" for name, value in {**spec.fixed, **point}.items())
    return ConfigError(f"a trial of this sweep cannot be run:\n{error.message}\nthe trial: {shown}", error.hint)


def tried(spec: SweepSpec) -> Iterator[Params]:
    """Every point of a small space; of another one, points in which each value stands once."""
    points = spec.points()
    if points is not None and len(points) <= _CHECKED_POINTS:
        yield from points
        return
    for mode in spec.modes or (None,):
        space = spec.space(mode)
        first = {name: parameter.extremes()[0] for name, parameter in space.items()}
        yield from ({**first, name: value} for name, p in space.items() for value in p.extremes())
