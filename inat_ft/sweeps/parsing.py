"""Read and validate a sweep file."""

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
    """Return the sweep of a file, or of `raw`, with some settings fixed for all trials; validate every value.

    Raises ConfigError naming the key and the value, UsageError if the file cannot be read.
    """
    spec = parse_spec(read_yaml(file) if file else raw)
    if fixed:
        spec = _fix(spec, dict(fixed))
    check_values(spec)
    return spec


def _fix(spec: SweepSpec, fixed: Mapping[str, Any]) -> SweepSpec:
    """Return the sweep with some keys fixed. If the mode is fixed, parameters of other modes are removed."""
    kept, named, mode = {}, dict(zip(fixed, fixed, strict=True)), fixed.get(MODE)
    for name, parameter in spec.parameters.items():
        owner, key = target(name)
        other = mode and (owner not in (None, mode) or (key.startswith("strategy.") and key not in options(mode)))
        if key in fixed:
            named[key] = named[key] if owner else name
        elif not other:
            kept[name] = parameter.model_dump(exclude_unset=True)
    values = {named[key]: {"value": value} for key, value in fixed.items()}
    return parse_spec({**spec.to_wandb(), "parameters": kept | values})


def parse_spec(raw: Any) -> SweepSpec:
    """Return the sweep in a mapping. Raises ConfigError naming the key."""
    try:
        return SweepSpec.model_validate(_numbers(raw))
    except ValidationError as error:
        lines = [_own_message(finding) for finding in error.errors()]
        found = format_validation_error(error, SweepSpec).message.splitlines()
        text = [line or plain for line, plain in zip(lines, [*found, *[""] * len(lines)], strict=False)]
        raise ConfigError(
            "\n".join(text), "the format is W&B's: https://docs.wandb.ai/models/sweeps/define-sweep-configuration"
        ) from None


def _own_message(finding: Any) -> str:
    """Return the message of a validator in this package, with its key; an empty string for pydantic's own errors."""
    if finding["type"] != "value_error":
        return ""
    where = ".".join(str(part) for part in finding["loc"])
    text = str(finding["ctx"]["error"])
    return text if not where or text.startswith(where) else f"{where}: {text}"


def _numbers(raw: Any) -> Any:
    """Convert strings such as `1e-3`, which YAML 1.1 does not read as numbers, to numbers, at every depth."""
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
    """Validate every possible value. Raises ConfigError naming the parameter and the value."""
    for point in probe_points(spec):
        try:
            spec.config(point)
        except InatFtError as error:
            raise invalid_trial(spec, point, error) from None


def invalid_trial(spec: SweepSpec, point: Params, error: InatFtError) -> ConfigError:
    """Return the error for a trial that cannot be trained."""
    exponents = [name for name, p in spec.varying.items() if p.kind == "log_uniform" and name in point]
    note = f"min and max of log_uniform ({', '.join(exponents)}) are exponents of e; for values use log_uniform_values"
    shown = ", ".join(f"{name}={value}" for name, value in {**spec.fixed, **point}.items())
    hint = "\n".join(line for line in (error.hint, note if exponents else "") if line)
    return ConfigError(f"a trial of this sweep is invalid:\n{error.message}\nthe trial: {shown}", hint)


def probe_points(spec: SweepSpec) -> Iterator[Params]:
    """Yield every point of a small space; of a large one, points in which each value occurs once."""
    points = spec.points()
    if points is not None and len(points) <= _CHECKED_POINTS:
        yield from points
        return
    for mode in spec.modes or (None,):
        space = spec.space(mode)
        first = {name: parameter.extremes()[0] for name, parameter in space.items()}
        yield from ({**first, name: value} for name, p in space.items() for value in p.extremes())
