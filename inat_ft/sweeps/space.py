"""The sweep file: W&B's format, checked key by key and value by value before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from inat_ft.config import RunConfig, explain
from inat_ft.errors import ConfigError, InatFtError, did_you_mean
from inat_ft.settings import Override, dotted, load_config, parse_yaml, read_yaml
from inat_ft.sweeps.parameter import MAX_POINTS, Parameter, Part

_CHECKED_POINTS = 500
Point = dict[str, Any]
"""One value for each parameter that varies, by the name that the file gives it."""


class Goal(Part):
    """What is wanted: a figure that every epoch reports, and which way is better."""

    name: str = "val_accuracy"
    goal: Literal["maximize", "minimize"] = "minimize"
    target: float | None = None
    """The sweep ends once a trial reaches it."""

    @field_validator("name")
    @classmethod
    def _is_reported(cls, name: str) -> str:
        known = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
        if name not in known:
            test = " (a sweep never touches the test set)" if "test" in name else ""
            raise ValueError(
                f"metric.name: '{name}' is not reported{test}{did_you_mean(name, known)}; known: {', '.join(known)}"
            )
        return name


class EarlyTerminate(Part):
    """End poor trials early: successive halving at epochs min_iter, min_iter * eta, ... as W&B's hyperband does."""

    type: Literal["hyperband"]
    min_iter: Annotated[int, Field(ge=1)] | None = None
    max_iter: Annotated[int, Field(ge=1)] | None = None
    s: Annotated[int, Field(ge=1)] | None = None
    eta: Annotated[int, Field(ge=2)] = 3
    strict: Literal[False] = False

    @model_validator(mode="after")
    def _has_start(self) -> EarlyTerminate:
        if self.min_iter is None and (self.max_iter is None or self.s is None):
            raise ValueError("early_terminate: hyperband needs min_iter, or max_iter and s")
        return self

    @property
    def first(self) -> int:
        """The first epoch at which a trial may end."""
        if self.min_iter is not None:
            return self.min_iter
        assert self.max_iter is not None and self.s is not None
        return max(1, int(self.max_iter // self.eta**self.s))


class SweepSpec(Part):
    """A sweep, as W&B's file says it."""

    method: Literal["bayes", "random", "grid"]
    metric: Goal = Goal(goal="maximize")
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    run_cap: Annotated[int, Field(ge=1)] | None = None
    early_terminate: EarlyTerminate | None = None
    name: str | None = None
    description: str | None = None
    program: str | None = None
    command: list[Any] | None = None
    project: str | None = None
    entity: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_to_wandb(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for key in ("controller", "scheduler", "job", "image_uri", "metrics"):
                if key in raw:
                    raise ValueError(f"'{key}' is W&B's own machinery and not supported here: leave it out")
            if raw.get("method") == "bayes" and "metric" not in raw:
                raise ValueError("method bayes needs a metric: {name: val_accuracy, goal: maximize}")
            if "parameters" in raw and isinstance(raw["parameters"], Mapping):
                return {**raw, "parameters": dict(_flat(raw["parameters"]))}
        return raw

    @model_validator(mode="after")
    def _parameters_make_sense(self) -> SweepSpec:
        seen: dict[str, str] = {}
        for name in self.parameters:
            key = dotted(name)
            if key in seen:
                raise ConfigError(f"parameters: '{seen[key]}' and '{name}' are both {key}", "keep one of them")
            if key == "name" or (name in self.varying and key.startswith(("track.", "data.split", "data.root"))):
                raise ConfigError(f"parameters.{name}: {key} cannot be part of a sweep's space")
            seen[key] = name
        if self.method == "grid" and self.points() is None:
            wide = [name for name, parameter in self.varying.items() if parameter.choices() is None]
            raise ValueError(
                f"method grid needs a list of values for each parameter; {', '.join(wide) or 'this space'} has too many"
            )
        return self

    @property
    def varying(self) -> dict[str, Parameter]:
        """The parameters that have more than one possible value."""
        return {name: p for name, p in self.parameters.items() if len(p.choices() or (0, 0)) > 1}

    @property
    def fixed(self) -> Point:
        """The parameters that have one value only."""
        return {name: (p.choices() or [])[0] for name, p in self.parameters.items() if name not in self.varying}

    def points(self) -> list[Point] | None:
        """All points of the space, the last parameter changing fastest; None when there are too many to list."""
        choices = [parameter.choices() for parameter in self.varying.values()]
        if any(values is None for values in choices):
            return None
        lists = [values for values in choices if values is not None]
        if math.prod(len(values) for values in lists) > MAX_POINTS:
            return None
        return [dict(zip(self.varying, values, strict=True)) for values in itertools.product(*lists)]

    @property
    def num_trials(self) -> int | None:
        """How many different points the sweep will try; None when nothing limits it."""
        points = self.points()
        limits = [limit for limit in (self.run_cap, None if points is None else len(points)) if limit is not None]
        return min(limits, default=None)

    def overrides(self, point: Mapping[str, Any]) -> list[Override]:
        """The settings of a trial: what is fixed and the point's values, under dotted keys."""
        return [(dotted(name), value) for name, value in {**self.fixed, **point}.items()]

    def config(self, point: Mapping[str, Any]) -> RunConfig:
        """The configuration of a trial. Raises ConfigError or PluginError."""
        return load_config(None, self.overrides(point))

    def to_wandb(self) -> dict[str, Any]:
        """The mapping that W&B takes, with plain numbers and flat parameters."""
        return self.model_dump(mode="json", exclude_unset=True) | {
            "method": self.method,
            "metric": self.metric.model_dump(exclude_none=True),
        }


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """W&B's nested parameters under dotted names: `{optim: {parameters: {lr: ...}}}` is `optim.lr`."""
    for name, parameter in parameters.items():
        if isinstance(parameter, Mapping) and isinstance(parameter.get("parameters"), Mapping):
            yield from _flat(parameter["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", parameter


BUILT_IN: dict[str, Any] = {
    "method": "bayes",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "run_cap": 22,
    "parameters": {
        "epochs": {"values": [5, 10]},
        "dropout": {"values": [0.0, 0.2, 0.3]},
        "batch_size": {"values": [32, 64]},
        "lr": {"values": [1e-3, 1e-4]},
        "mode": {"value": "head"},
        "patience": {"value": 3},
    },
}
"""The sweep without a file."""


def read_spec(file: Path | None, fixed: Sequence[Override] = ()) -> SweepSpec:
    """The sweep of a file, or the built-in one, with some settings fixed for all trials; every value is checked.

    Raises ConfigError naming the key and the value, UsageError when the file cannot be read.
    """
    raw = read_yaml(file) if file else BUILT_IN
    spec = parse_spec(raw)
    if fixed:
        named = {dotted(name): name for name in spec.parameters}
        parameters = {name: p for name, p in spec.parameters.items() if dotted(name) not in dict(fixed)}
        parameters |= {named.get(key, key): Parameter(value=value) for key, value in fixed}
        spec = parse_spec(
            {**spec.to_wandb(), "parameters": {n: p.model_dump(exclude_unset=True) for n, p in parameters.items()}}
        )
    check_values(spec)
    return spec


def parse_spec(raw: Any) -> SweepSpec:
    """The sweep in a mapping. Raises ConfigError naming the key."""
    try:
        return SweepSpec.model_validate(_numbers(raw))
    except ValidationError as error:
        lines = [_finding(finding) for finding in error.errors()]
        found = explain(error, SweepSpec).message.splitlines()
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
        value = parse_yaml(raw)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else raw
    return raw


def check_values(spec: SweepSpec) -> None:
    """Try every possible value against the configuration. Raises ConfigError naming the parameter and the value."""
    first = {name: parameter.extremes()[0] for name, parameter in spec.varying.items()}
    points = spec.points()
    if points is not None and len(points) <= _CHECKED_POINTS:
        tried: Iterator[Point] = iter(points)
    else:
        tried = ({**first, name: value} for name, p in spec.varying.items() for value in p.extremes())
    for point in itertools.chain([first], tried):
        try:
            spec.config(point)
        except InatFtError as error:
            shown = ", ".join(f"{name}={value}" for name, value in {**spec.fixed, **point}.items())
            raise ConfigError(
                f"a trial of this sweep cannot be run:\n{error.message}\nthe trial: {shown}", error.hint
            ) from None
