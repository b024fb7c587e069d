"""The sweep file: W&B's format, checked key by key and value by value before anything runs."""

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
"""One value for each parameter that varies and counts for the trial, by the name that the file gives it."""


class MetricSpec(StrictModel):
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


class EarlyTerminate(StrictModel):
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

    @field_validator("strict", mode="before")
    @classmethod
    def _is_not_strict(cls, strict: Any) -> Any:
        if strict is True:
            raise ValueError("strict of hyperband is not supported here: leave it out")
        return strict

    @property
    def first(self) -> int:
        """The first epoch at which a trial may end."""
        if self.min_iter is not None:
            return self.min_iter
        assert self.max_iter is not None and self.s is not None
        return max(1, int(self.max_iter // self.eta**self.s))


class SweepSpec(StrictModel):
    """A sweep, as W&B's file says it."""

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
    def _known_to_wandb(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for key in ("controller", "scheduler", "job", "image_uri", "metrics"):
                if key in raw:
                    raise ValueError(f"'{key}' is W&B's own machinery and not supported here: leave it out")
            if raw.get("method") == "bayes" and "metric" not in raw:
                raise ValueError("method bayes needs a metric: {name: val_accuracy, goal: maximize}")
            metric = raw.get("metric")
            if (
                isinstance(metric, Mapping)
                and "goal" not in metric
                and "accuracy" in str(metric.get("name", "accuracy"))
            ):
                raise ValueError("metric: without a goal W&B seeks the lowest accuracy; add goal: maximize")
            if "parameters" in raw and isinstance(raw["parameters"], Mapping):
                return {**raw, "parameters": dict(_flat(raw["parameters"]))}
        return raw

    @model_validator(mode="after")
    def _parameters_make_sense(self) -> SweepSpec:
        seen: dict[tuple[str | None, str], str] = {}
        for name in self.parameters:
            owner, key = target(name)
            if (owner, key) in seen:
                raise ConfigError(f"parameters: '{seen[owner, key]}' and '{name}' are both {key}", "keep one of them")
            pinned = name in self.varying and key.startswith(("track.", "data.split", "data.root"))
            if key == "name" or pinned or (owner and key == MODE):
                raise ConfigError(f"parameters.{name}: {key} cannot be part of a sweep's space")
            require_used(name, self.modes)
            seen[owner, key] = name
        if self.method == "grid" and self.points() is None:
            wide = [name for name, parameter in self.varying.items() if parameter.choices() is None]
            raise ValueError(
                f"method grid needs a list of values for each parameter; {', '.join(wide) or 'this space'} has too many"
            )
        return self

    @property
    def varying(self) -> dict[str, Parameter]:
        """The parameters that can differ among trials: with more than one possible value, or for one mode only."""
        return {name: p for name, p in self.parameters.items() if len(p.choices() or (0, 0)) > 1 or target(name)[0]}

    @property
    def fixed(self) -> Params:
        """The parameters that have one value only."""
        return {name: (p.choices() or [])[0] for name, p in self.parameters.items() if name not in self.varying}

    @property
    def modes(self) -> list[str]:
        """The strategies that the file names; none where it leaves them to the configuration."""
        return [
            str(mode) for name, p in self.parameters.items() if target(name)[1] == MODE for mode in p.choices() or ()
        ]

    def mode_of(self, values: Mapping[str, Any]) -> str | None:
        """The strategy of a trial, as far as the file says."""
        return next((str(v) for name, v in {**self.fixed, **values}.items() if target(name)[1] == MODE), None)

    def active(self, mode: str | None) -> dict[str, str]:
        """The parameters that count for a mode: the name in a trial's point, and the name in the file."""
        return active(tuple(self.parameters), mode)

    def space(self, mode: str | None) -> dict[str, Parameter]:
        """What varies among the trials of one mode, by the name in a trial's point; the mode itself has one value."""
        own = {shown: name for shown, name in self.active(mode).items() if name in self.varying}
        return {n: Parameter(value=mode) if target(n)[1] == MODE else self.varying[name] for n, name in own.items()}

    def points(self) -> list[Params] | None:
        """All points of the space, the last parameter changing fastest; None when there are too many to list.

        A parameter that does not count for a mode is not in its points. The modes come one after the other.
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
        """How many different points the sweep will try; None when nothing limits it."""
        points = self.points()
        limits = [limit for limit in (self.run_cap, None if points is None else len(points)) if limit is not None]
        return min(limits, default=None)

    def overrides(self, point: Mapping[str, Any]) -> list[Override]:
        """The settings of a trial: what is fixed and the point's values, under dotted keys."""
        fixed = self.fixed
        shown = {name: fixed[own] for name, own in self.active(self.mode_of(point)).items() if own in fixed}
        return [(expand_key(name), value) for name, value in {**shown, **point}.items()]

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
