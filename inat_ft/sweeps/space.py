"""The sweep file in W&B's format, and the space of points that it describes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from inat_ft.config import RunConfig
from inat_ft.errors import ConfigError, did_you_mean
from inat_ft.settings import Override, expand_key, load_config
from inat_ft.sweeps.conditional import MODE, active, require_used, target
from inat_ft.sweeps.parameter import MAX_POINTS, Parameter, StrictModel

Params = dict[str, Any]
"""The parameters of a trial that vary and apply to its mode, by name."""


class MetricSpec(StrictModel):
    """The metric to optimize, which every epoch reports."""

    name: str = "val_accuracy"
    goal: Literal["maximize", "minimize"] = "minimize"
    target: float | None = None
    """The sweep ends when a trial reaches this value."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        known = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
        if name not in known:
            test = " (a sweep does not use the test set)" if "test" in name else ""
            raise ValueError(f"unknown metric '{name}'{test}{did_you_mean(name, known)}; known: {', '.join(known)}")
        return name


class EarlyTerminate(StrictModel):
    """Stop poor trials early: successive halving at epochs min_iter, min_iter * eta, ..., as in W&B's hyperband."""

    type: Literal["hyperband"]
    min_iter: Annotated[int, Field(ge=1)] | None = None
    max_iter: Annotated[int, Field(ge=1)] | None = None
    s: Annotated[int, Field(ge=1)] | None = None
    eta: Annotated[int, Field(ge=2)] = 3
    strict: Literal[False] = False

    @model_validator(mode="after")
    def _check_start(self) -> EarlyTerminate:
        if self.min_iter is None and (self.max_iter is None or self.s is None):
            raise ValueError("early_terminate: hyperband needs min_iter, or max_iter and s")
        return self

    @field_validator("strict", mode="before")
    @classmethod
    def _check_strict(cls, strict: Any) -> Any:
        if strict is True:
            raise ValueError("hyperband's 'strict' is not supported: remove it")
        return strict

    @property
    def first(self) -> int:
        """The first epoch at which a trial may be stopped."""
        if self.min_iter is not None:
            return self.min_iter
        assert self.max_iter is not None and self.s is not None
        return max(1, int(self.max_iter // self.eta**self.s))


class SweepSpec(StrictModel):
    """A sweep file: search method, metric and parameters."""

    method: Literal["bayes", "random", "grid"]
    metric: MetricSpec = MetricSpec(goal="maximize")
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
    def _check_keys(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for key in ("controller", "scheduler", "job", "image_uri", "metrics"):
                if key in raw:
                    raise ValueError(f"'{key}' is only for W&B's own schedulers and not supported: remove it")
            if raw.get("method") == "bayes" and "metric" not in raw:
                raise ValueError("method bayes needs a metric: {name: val_accuracy, goal: maximize}")
            metric = raw.get("metric")
            if (
                isinstance(metric, Mapping)
                and "goal" not in metric
                and "accuracy" in str(metric.get("name", "accuracy"))
            ):
                raise ValueError("metric: without a goal W&B minimizes the accuracy; add goal: maximize")
            if "parameters" in raw and isinstance(raw["parameters"], Mapping):
                return {**raw, "parameters": dict(_flat(raw["parameters"]))}
        return raw

    @model_validator(mode="after")
    def _check_parameters(self) -> SweepSpec:
        seen: dict[tuple[str | None, str], str] = {}
        for name in self.parameters:
            owner, key = target(name)
            if (owner, key) in seen:
                raise ConfigError(f"parameters: '{seen[owner, key]}' and '{name}' both set {key}", "keep one of them")
            pinned = name in self.varying and key.startswith(("track.", "data.split", "data.root"))
            if key == "name" or pinned or (owner and key == MODE):
                raise ConfigError(f"parameters.{name}: a sweep cannot vary {key}")
            require_used(name, self.modes)
            seen[owner, key] = name
        if self.method == "grid" and self.points() is None:
            wide = [name for name, parameter in self.varying.items() if parameter.choices() is None]
            raise ValueError(
                f"method grid needs a list of values for each parameter: {', '.join(wide) or 'the space'} has more than "
                f"{MAX_POINTS:,}"
            )
        return self

    @property
    def varying(self) -> dict[str, Parameter]:
        """The parameters that can differ among trials: those with several values, or for one mode only."""
        return {name: p for name, p in self.parameters.items() if len(p.choices() or (0, 0)) > 1 or target(name)[0]}

    @property
    def fixed(self) -> Params:
        """The parameters with a single value."""
        return {name: (p.choices() or [])[0] for name, p in self.parameters.items() if name not in self.varying}

    @property
    def modes(self) -> list[str]:
        """The strategies in the file; empty if the file does not set the mode."""
        return [
            str(mode) for name, p in self.parameters.items() if target(name)[1] == MODE for mode in p.choices() or ()
        ]

    def mode_of(self, values: Mapping[str, Any]) -> str | None:
        """Return the strategy of a trial, or None if the file does not set the mode."""
        return next((str(v) for name, v in {**self.fixed, **values}.items() if target(name)[1] == MODE), None)

    def active(self, mode: str | None) -> dict[str, str]:
        """Return the parameters that apply to a mode: name in a trial's params -> name in the file."""
        return active(tuple(self.parameters), mode)

    def space(self, mode: str | None) -> dict[str, Parameter]:
        """Return the varying parameters of one mode by name in a trial's params; the mode itself has one value."""
        own = {shown: name for shown, name in self.active(mode).items() if name in self.varying}
        return {n: Parameter(value=mode) if target(n)[1] == MODE else self.varying[name] for n, name in own.items()}

    def points(self) -> list[Params] | None:
        """Return all points of the space, mode by mode, the last parameter changing fastest.

        Return None for a continuous space. A parameter that does not apply to a mode is not in its points.
        """
        if any(parameter.choices() is None for parameter in self.varying.values()):
            return None
        spaces = [
            {name: parameter.choices() or [] for name, parameter in self.space(mode).items()}
            for mode in self.modes or (None,)
        ]
        if sum(math.prod(map(len, space.values())) for space in spaces) > MAX_POINTS:
            return None
        return [
            dict(zip(space, values, strict=True)) for space in spaces for values in itertools.product(*space.values())
        ]

    @property
    def num_trials(self) -> int | None:
        """Number of points that the sweep tries; None without a limit."""
        points = self.points()
        limits = [limit for limit in (self.run_cap, None if points is None else len(points)) if limit is not None]
        return min(limits, default=None)

    def check_point(self, params: Mapping[str, Any]) -> None:
        """Raise ValueError unless these are the parameters of a trial, each with a possible value."""
        space = self.space(self.mode_of(params))
        if set(params) != set(space):
            raise ValueError(f"expected values for {', '.join(space)} (got {', '.join(params) or 'none'})")
        for name, value in params.items():
            if not space[name].contains(value):
                raise ValueError(f"{name}={value!r} is not a possible value")

    def overrides(self, point: Mapping[str, Any]) -> list[Override]:
        """Return the settings of a trial by dotted key: the fixed parameters and those of the point."""
        fixed = self.fixed
        shown = {name: fixed[own] for name, own in self.active(self.mode_of(point)).items() if own in fixed}
        return [(expand_key(name), value) for name, value in {**shown, **point}.items()]

    def config(self, point: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of a trial. Raise ConfigError or PluginError if it is invalid."""
        return load_config(None, self.overrides(point))

    def to_wandb(self) -> dict[str, Any]:
        """Return the sweep as W&B takes it, with plain numbers and flat parameters."""
        return self.model_dump(mode="json", exclude_unset=True) | {
            "method": self.method,
            "metric": self.metric.model_dump(exclude_none=True),
        }


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield W&B's nested parameters under dotted names: `{optim: {parameters: {lr: ...}}}` is `optim.lr`."""
    for name, parameter in parameters.items():
        if isinstance(parameter, Mapping) and isinstance(parameter.get("parameters"), Mapping):
            yield from _flat(parameter["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", parameter
