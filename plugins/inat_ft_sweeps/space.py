"""The sweep file in W&B's format, and the space of points that it describes.

Some parameters apply to some trials only. In a sweep over several modes, `unfreeze_from` applies only to the modes that
have this option. `full.lr` (or `lr` nested under `full`) applies only to mode full, in place of `lr`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from inat_ft.config import RunConfig, Section
from inat_ft.errors import ConfigError, did_you_mean
from inat_ft.registry import STRATEGIES, get, plugins
from inat_ft.settings import ALIASES, Override, expand_key, load_config
from inat_ft_sweeps.parameter import MAX_POINTS, Parameter

Params = dict[str, Any]  # the parameters of a trial that vary and apply to its mode, by name
MODE = "strategy.name"


def target(name: str) -> tuple[str | None, str]:
    """Return the mode that a parameter is for (None: any) and its configuration key. Raise ConfigError if unknown."""
    mode, _, rest = name.partition(".")
    if not rest or mode in RunConfig.model_fields or mode not in plugins(STRATEGIES):
        return None, expand_key(name)
    return mode, expand_key(rest) if "." in rest or rest in (*ALIASES, "seed") else f"strategy.{rest}"


@cache
def options(mode: str) -> tuple[str, ...]:
    """Return the keys of a strategy's options. Raise ConfigError if it is unknown, PluginError if it fails to load."""
    return tuple(f"strategy.{field}" for field in get(STRATEGIES, mode).load().model_fields)


@cache
def active(names: tuple[str, ...], mode: str | None) -> dict[str, str]:
    """Return the parameters that apply to a mode: name in a trial's params -> name in the file."""
    placed = [(name, *target(name)) for name in names]
    general = {key: name for name, owner, key in placed if owner is None}
    own = {key: name for name, owner, key in placed if owner == mode is not None}
    return {
        general.get(key, key if key.startswith("strategy.") else name.partition(".")[2]): own.get(key, name)
        for key, name in {**general, **own}.items()
        if mode is None or key == MODE or not key.startswith("strategy.") or key in options(mode)
    }


def require_used(name: str, modes: Sequence[str]) -> None:
    """Raise ConfigError unless a parameter applies to at least one of the modes."""
    owner, key = target(name)
    if owner is not None and owner not in modes:
        hint = f"add {owner} to the values of mode"
        raise ConfigError(f"parameters.{name}: no trial of this sweep has mode {owner}", hint)
    having = [owner] if owner else modes
    known = tuple(dict.fromkeys(option for mode in having for option in options(mode)))
    if having and key.startswith("strategy.") and key not in (MODE, *known):
        word = key.partition(".")[2]
        raise ConfigError(
            f"parameters.{name}: {' and '.join(having)} {'has' if len(having) == 1 else 'have'} no option '{word}'"
            + did_you_mean(word, [option.partition(".")[2] for option in known]),
            "list the options of a strategy: inat-ft strategies NAME",
        )


class MetricSpec(Section):
    """The metric to optimize, which every epoch reports."""

    name: Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"] = "val_accuracy"
    goal: Literal["maximize", "minimize"] = "minimize"
    target: float | None = None
    """The sweep ends when a trial reaches this value."""


class EarlyTerminate(Section):
    """Stop poor trials early: successive halving at epochs min_iter, min_iter * eta, ..., as in W&B's hyperband."""

    type: Literal["hyperband"]
    min_iter: Annotated[int, Field(ge=1)] | None = None
    max_iter: Annotated[int, Field(ge=1)] | None = None
    s: Annotated[int, Field(ge=1)] | None = None
    eta: Annotated[int, Field(ge=2)] = 3
    strict: bool = False

    @model_validator(mode="after")
    def _check(self) -> EarlyTerminate:
        if self.min_iter is None and (self.max_iter is None or self.s is None):
            raise ValueError("early_terminate: hyperband needs min_iter, or max_iter and s")
        if self.strict:
            raise ValueError("hyperband's 'strict' is not supported: remove it")
        return self

    @property
    def first(self) -> int:
        return self.min_iter or max(1, int((self.max_iter or 1) // self.eta ** (self.s or 1)))


class SweepSpec(Section):
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
            metric, parameters = raw.get("metric"), raw.get("parameters")
            if (
                isinstance(metric, Mapping)
                and "goal" not in metric
                and "accuracy" in str(metric.get("name", "accuracy"))
            ):
                raise ValueError("metric: without a goal W&B minimizes the accuracy; add goal: maximize")
            if isinstance(parameters, Mapping):
                return {**raw, "parameters": dict(_flat(parameters))}
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
            wide = ", ".join(name for name, p in self.varying.items() if p.choices() is None) or "the space"
            problem = f"{wide} has more than {MAX_POINTS:,}"
            raise ValueError(f"method grid needs a list of values for each parameter: {problem}")
        return self

    @property
    def varying(self) -> dict[str, Parameter]:
        """The parameters that can differ among trials: those with several values, or for one mode only."""
        return {name: p for name, p in self.parameters.items() if len(p.choices() or (0, 0)) > 1 or target(name)[0]}

    @property
    def fixed(self) -> Params:
        varying = self.varying
        return {name: (p.choices() or [])[0] for name, p in self.parameters.items() if name not in varying}

    @property
    def modes(self) -> list[str]:
        parameter = next((p for name, p in self.parameters.items() if target(name)[1] == MODE), None)
        return [str(mode) for mode in (parameter and parameter.choices()) or ()]

    def mode_of(self, values: Mapping[str, Any]) -> str | None:
        """Return the strategy of a trial, or None if the file does not set the mode."""
        return next((str(v) for name, v in {**self.fixed, **values}.items() if target(name)[1] == MODE), None)

    def active(self, mode: str | None) -> dict[str, str]:
        """Return the parameters that apply to a mode: name in a trial's params -> name in the file."""
        return active(tuple(self.parameters), mode)

    def space(self, mode: str | None) -> dict[str, Parameter]:
        """Return the varying parameters of one mode by name in a trial's params; the mode itself has one value."""
        varying = self.varying
        own = {shown: name for shown, name in self.active(mode).items() if name in varying}
        return {n: Parameter(value=mode) if target(n)[1] == MODE else varying[name] for n, name in own.items()}

    def points(self) -> list[Params] | None:
        """Return all points of the space, mode by mode, the last parameter changing fastest.

        Return None for a continuous space. A parameter that does not apply to a mode is not in its points.
        """
        if any(parameter.choices() is None for parameter in self.varying.values()):
            return None
        spaces = [{n: p.choices() or [] for n, p in self.space(mode).items()} for mode in self.modes or (None,)]
        if sum(math.prod(map(len, space.values())) for space in spaces) > MAX_POINTS:
            return None
        return [dict(zip(space, point, strict=True)) for space in spaces for point in product(*space.values())]

    @property
    def num_trials(self) -> int | None:
        """Number of points that the sweep tries; None without a limit."""
        points = self.points()
        if points is None:
            return self.run_cap
        return min(self.run_cap or len(points), len(points))

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
        metric = self.metric.model_dump(exclude_none=True)
        return self.model_dump(mode="json", exclude_unset=True) | {"method": self.method, "metric": metric}


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield W&B's nested parameters under dotted names: `{optim: {parameters: {lr: ...}}}` is `optim.lr`."""
    for name, parameter in parameters.items():
        if isinstance(parameter, Mapping) and isinstance(parameter.get("parameters"), Mapping):
            yield from _flat(parameter["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", parameter
