"""One parameter of a sweep: a value, a list of values, or a range with a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from inat_ft.config import Section
from inat_ft.errors import did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_POINTS = 2000  # a space with more points than this is treated as continuous
_RANGES = ("int_uniform", "uniform", "q_uniform", "log_uniform", "log_uniform_values", "q_log_uniform_values")
_DISTRIBUTIONS = ("constant", "categorical", *_RANGES)
_REFUSED = {
    **dict.fromkeys(
        ("normal", "log_normal", "q_normal", "q_log_normal", "beta", "q_beta"),
        "it is unbounded; use a distribution with min and max",
    ),
    "q_log_uniform": "its bounds are exponents but its steps are values; use q_log_uniform_values",
    "inv_log_uniform": "its bounds are exponents of 1/x; change their signs and use log_uniform",
    "inv_log_uniform_values": "it is the same distribution as log_uniform_values; use that",
    "categorical_w_probabilities": "all values are equally likely at the start; use categorical",
}
"""W&B's other distributions, and what to use instead."""
_LARGEST = 1e15  # floating-point numbers beyond this bound are not exact
_LARGEST_EXPONENT = 700.0


def _check_distribution(kind: Any) -> None:
    """Raise ValueError for a distribution that is not supported or unknown."""
    if isinstance(kind, str) and kind in _REFUSED:
        raise ValueError(f"distribution '{kind}' is not supported: {_REFUSED[kind]}")
    if kind is not None and kind not in _DISTRIBUTIONS:
        near = did_you_mean(str(kind), _DISTRIBUTIONS)
        raise ValueError(f"distribution '{kind}' is unknown{near}; known: {', '.join(_DISTRIBUTIONS)}")


class Parameter(Section):
    """One parameter: a value, a list of values, or a range with a distribution."""

    value: Any = None
    values: Annotated[list[bool | int | float | str | None], Field(min_length=1)] | None = None
    distribution: str | None = None
    min: int | float | None = None
    max: int | float | None = None
    q: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            raise ValueError(f"expected value, values, or min and max (got {raw!r})")
        _check_distribution(raw.get("distribution"))
        if found := {"probabilities", "mu", "sigma"} & raw.keys():
            raise ValueError(f"'{min(found)}' is not supported: all values are equally likely at the start")
        values = raw["values"] if isinstance(raw.get("values"), list) else []
        if len(values) > MAX_POINTS:
            raise ValueError(f"values: at most {MAX_POINTS:,} (got {len(values):,}); use min and max for a range")
        for value in values:
            if not isinstance(value, bool | int | float | str | None):
                raise ValueError(f"values: expected a number, a string, true, false or null (got {value!r})")
        for key in ("min", "max"):
            if not isinstance(raw.get(key), int | float | None) or isinstance(raw.get(key), bool):
                raise ValueError(f"{key} must be a number (got {raw[key]!r})")
        return raw

    @model_validator(mode="after")
    def _check_combination(self) -> Parameter:
        given = [key for key in ("value", "values") if key in self.model_fields_set]
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if len(given) + bool(bounds) != 1 or len(bounds) == 1:
            raise ValueError("needs one of: value; values; min and max")
        if (self.kind in _RANGES) != bool(bounds):
            raise ValueError(f"distribution '{self.kind}' cannot be combined with {', '.join(given) or 'min and max'}")
        if bounds:
            self._check_range(*bounds)
        if self.q is not None and not self.kind.startswith("q_"):
            raise ValueError(f"q is for distributions that round, such as q_uniform (got distribution {self.kind})")
        return self

    def _check_range(self, low: float, high: float) -> None:
        if not (abs(low) <= _LARGEST and abs(high) <= _LARGEST):
            got = f"{str(low)[:20]}, {str(high)[:20]}"
            raise ValueError(f"min and max must be numbers up to {_LARGEST:g} (got {got})")
        if not low < high:
            raise ValueError(f"min must be below max (got {low} and {high})")
        if "log_uniform_values" in self.kind and low <= 0:
            problem = f"min of {self.kind} must be above 0 (got {low}): its min and max are values"
            raise ValueError(f"{problem}; for exponents of e use log_uniform")
        looks_like_values = max(abs(low), abs(high)) > _LARGEST_EXPONENT or 0 < low < high <= 1
        if self.kind == "log_uniform" and looks_like_values:
            problem = f"exponents of e: {low:g} and {high:g} mean e^{low:g} to e^{high:g}"
            raise ValueError(f"min and max of log_uniform are {problem}; for values use log_uniform_values")
        if self.kind == "int_uniform" and not (float(low).is_integer() and float(high).is_integer()):
            raise ValueError(f"min and max of int_uniform must be integers (got {low} and {high})")

    @property
    def kind(self) -> str:
        """The distribution; if the file does not name one, W&B's default for the given keys."""
        if self.distribution is not None:
            return self.distribution
        if "value" in self.model_fields_set:
            return "constant"
        if self.values is not None:
            return "categorical"
        return "int_uniform" if isinstance(self.min, int) and isinstance(self.max, int) else "uniform"

    def _grid(self) -> tuple[float, float, float | None]:
        """Return the lowest and the highest possible value, and the step between values (None: continuous)."""
        assert self.min is not None and self.max is not None
        low, high = float(self.min), float(self.max)
        if self.kind == "log_uniform":
            low, high = math.exp(low), math.exp(high)
        if self.kind != "int_uniform" and not self.kind.startswith("q_"):
            return low, high, None
        step = self.q or 1.0
        first = round(low / step) * step if "log" in self.kind else low
        return first, first + int((high - first) / step + 1e-9) * step, step

    def choices(self) -> list[Any] | None:
        """Return all possible values without repeats, or None for a continuous range."""
        if self.kind == "constant":
            return [self.value]
        if self.values is not None:
            return list(dict.fromkeys(self.values))
        low, high, step = self._grid()
        if step is None or (high - low) / step >= MAX_POINTS:
            return None
        return [self.cast(low + step * place) for place in range(round((high - low) / step) + 1)]

    def extremes(self) -> list[Any]:
        """Return the values to validate: all of them, or both bounds of a range and a value in between."""
        if (choices := self.choices()) is not None:
            return choices
        low, high, _ = self._grid()
        return [self.cast(value) for value in (low, high, low + 0.37 * (high - low))]

    def contains(self, value: Any) -> bool:
        if (choices := self.choices()) is not None:
            return value in choices
        low, high, _ = self._grid()
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    def to_optuna(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind not in _RANGES:
            return CategoricalDistribution(self.choices() or ())
        low, high, step = self._grid()
        if self.kind == "int_uniform":
            return IntDistribution(int(low), int(high))
        if self.kind == "q_log_uniform_values":  # `cast` rounds
            return FloatDistribution(float(self.min or 0), float(self.max or 0), log=True)
        return FloatDistribution(low, high, log="log" in self.kind, step=step)

    def cast(self, value: Any) -> Any:
        """Return a proposed value as the configuration takes it, rounded where the distribution requires it."""
        if self.kind == "int_uniform":
            return int(value)
        if not self.kind.startswith("q_"):
            return value
        if "log" in self.kind:
            low, high, step = self._grid()
            value = min(max(round(value / (step or 1.0)) * (step or 1.0), low), high)
        value = round(value, 12)  # without floating-point residue
        return int(value) if value.is_integer() and float(self.q or 1.0).is_integer() else value
