"""The sweep file: W&B's format, checked key by key and value by value before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inat_ft.config import RunConfig, explain
from inat_ft.errors import ConfigError, InatFtError, did_you_mean
from inat_ft.settings import Override, dotted, load_config, parse_yaml, read_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_POINTS = 2000
"""A space with more points than this is searched as if it had no end."""
_CHECKED_POINTS = 500
_DISTRIBUTIONS = (
    "constant",
    "categorical",
    "int_uniform",
    "uniform",
    "q_uniform",
    "log_uniform",
    "log_uniform_values",
    "q_log_uniform_values",
)

Point = dict[str, Any]
"""One value for each parameter that varies, by the name that the file gives it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Goal(_Part):
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


class EarlyTerminate(_Part):
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
        return max(1, self.max_iter // self.eta**self.s)


class Parameter(_Part):
    """One parameter: a value, a list of values, or a range with a distribution."""

    value: Any = None
    values: Annotated[list[bool | int | float | str | None], Field(min_length=1)] | None = None
    distribution: str | None = None
    min: int | float | None = None
    max: int | float | None = None
    q: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            raise ValueError(f"expected value, values, or min and max (got {raw!r})")
        kind = raw.get("distribution")
        unsupported = {"normal", "log_normal", "q_normal", "q_log_normal", "beta", "q_beta", "inv_log_uniform"}
        if kind is not None and (kind in unsupported or kind not in _DISTRIBUTIONS):
            why = "is not supported here, as it has no bounds to search in" if kind in unsupported else "is unknown"
            raise ValueError(f"distribution '{kind}' {why}; supported: {', '.join(_DISTRIBUTIONS)}")
        for key in ("probabilities", "mu", "sigma"):
            if key in raw:
                raise ValueError(f"'{key}' is not supported here: all values are equally likely before any is tried")
        return raw

    @model_validator(mode="after")
    def _is_complete(self) -> Parameter:
        given = [key for key in ("value", "values") if key in self.model_fields_set]
        ranged = [key for key in ("min", "max") if getattr(self, key) is not None]
        if len(given) + bool(ranged) != 1 or len(ranged) == 1:
            raise ValueError("needs one of: value; values; min and max")
        if ranged:
            assert self.min is not None and self.max is not None
            if not self.min < self.max:
                raise ValueError(f"min must be below max (got {self.min} and {self.max})")
            if self.kind.startswith(("log_uniform_values", "q_log")) and self.min <= 0:
                raise ValueError(f"min must be above 0 for {self.kind} (got {self.min})")
            if self.kind == "int_uniform" and not (float(self.min).is_integer() and float(self.max).is_integer()):
                raise ValueError(f"int_uniform takes whole numbers (got {self.min} and {self.max})")
        if (self.kind in ("constant", "categorical")) == bool(ranged):
            raise ValueError(f"distribution '{self.kind}' does not go with {', '.join(given or ranged)}")
        return self

    @property
    def kind(self) -> str:
        """The distribution; without one named, what W&B takes it to be."""
        if self.distribution is not None:
            return self.distribution
        if "value" in self.model_fields_set:
            return "constant"
        if self.values is not None:
            return "categorical"
        return "int_uniform" if isinstance(self.min, int) and isinstance(self.max, int) else "uniform"

    def choices(self) -> list[Any] | None:
        """All possible values, each once; None when there is no end to them."""
        if self.kind == "constant":
            return [self.value]
        if self.values is not None:
            return [value for place, value in enumerate(self.values) if value not in self.values[:place]]
        low, high = self._bounds()
        if self.kind == "int_uniform":
            return list(range(int(low), int(high) + 1)) if high - low < MAX_POINTS else None
        if self.kind == "q_uniform":
            step = self.q or 1.0
            number = int((high - low) / step + 1e-9) + 1
            values = (round(low + index * step, 12) for index in range(number))
            return (
                [int(v) if float(step).is_integer() and v.is_integer() else v for v in values]
                if number < MAX_POINTS
                else None
            )
        return None

    def extremes(self) -> list[Any]:
        """Values to try against the configuration: all, or both ends of the range."""
        choices = self.choices()
        return choices if choices is not None else [*(self.cast(bound) for bound in self._bounds())]

    def distribution_for(self) -> BaseDistribution:
        """As Optuna's distribution, for a parameter without an end of values."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.values is not None:
            return CategoricalDistribution(self.choices() or ())
        low, high = self._bounds()
        if self.kind == "int_uniform":
            return IntDistribution(int(low), int(high))
        if self.kind == "q_uniform":
            return FloatDistribution(low, high, step=self.q or 1.0)
        return FloatDistribution(low, high, log="log" in self.kind)

    def _bounds(self) -> tuple[float, float]:
        assert self.min is not None and self.max is not None
        low, high = float(self.min), float(self.max)
        return (math.exp(low), math.exp(high)) if self.kind == "log_uniform" else (low, high)

    def cast(self, value: Any) -> Any:
        """A value as the configuration takes it: rounded where the distribution says so."""
        if self.values is not None:
            return value
        if self.kind.startswith("q_log"):
            value = round(value / (self.q or 1.0)) * (self.q or 1.0)
            return int(value) if float(self.q or 1).is_integer() else value
        return int(value) if self.kind == "int_uniform" else value


class SweepSpec(_Part):
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
