"""One parameter of a sweep: a value, a list of values, or a range with a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inat_ft.errors import did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_POINTS = 2000
"""A space with more points than this is treated as continuous."""
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
_LARGEST = 1e15
"""Floating-point numbers beyond this bound are not exact."""
_LARGEST_EXPONENT = 700.0


class StrictModel(BaseModel):
    """A frozen section of a sweep file that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Parameter(StrictModel):
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
        kind = raw.get("distribution")
        if kind in _REFUSED:
            raise ValueError(f"distribution '{kind}' is not supported: {_REFUSED[kind]}")
        if kind is not None and kind not in _DISTRIBUTIONS:
            near = did_you_mean(str(kind), _DISTRIBUTIONS)
            raise ValueError(f"distribution '{kind}' is unknown{near}; known: {', '.join(_DISTRIBUTIONS)}")
        for key in ("probabilities", "mu", "sigma"):
            if key in raw:
                raise ValueError(f"'{key}' is not supported: all values are equally likely at the start")
        _check_values(raw.get("values"))
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
        if (self.kind in ("constant", "categorical")) == bool(bounds):
            raise ValueError(f"distribution '{self.kind}' cannot be combined with {', '.join(given) or 'min and max'}")
        if bounds:
            self._check_range(*bounds)
        if self.q is not None and not self.kind.startswith("q_"):
            raise ValueError(f"q is for distributions that round, such as q_uniform (got distribution {self.kind})")
        return self

    def _check_range(self, low: float, high: float) -> None:
        if not (abs(low) <= _LARGEST and abs(high) <= _LARGEST):
            raise ValueError(f"min and max must be numbers up to {_LARGEST:g} (got {_short(low)}, {_short(high)})")
        if not low < high:
            raise ValueError(f"min must be below max (got {low} and {high})")
        if self.kind in ("log_uniform_values", "q_log_uniform_values") and low <= 0:
            raise ValueError(
                f"min of {self.kind} must be above 0 (got {low}): its min and max are values; "
                "for exponents of e use log_uniform"
            )
        if self.kind == "log_uniform":
            _check_exponents(low, high)
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

    def choices(self) -> list[Any] | None:
        """Return all possible values without repeats, or None for a continuous range."""
        if self.kind == "constant":
            return [self.value]
        if self.values is not None:
            return list(dict.fromkeys(self.values))
        first, last = self._limits()
        if self._step is None or (last - first) / self._step >= MAX_POINTS:
            return None
        return [self._rounded(first + self._step * place) for place in range(round((last - first) / self._step) + 1)]

    def extremes(self) -> list[Any]:
        """Return the values to validate: all of them, or both bounds of a range and a value in between."""
        if (choices := self.choices()) is not None:
            return choices
        low, high = self._bounds()
        return [self.cast(value) for value in (low, high, low + 0.37 * (high - low))]

    def contains(self, value: Any) -> bool:
        """Return whether a trial may have this value."""
        if (choices := self.choices()) is not None:
            return value in choices
        low, high = self._limits()
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    def to_optuna(self) -> BaseDistribution:
        """Return the equivalent Optuna distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind in ("constant", "categorical"):
            return CategoricalDistribution(self.choices() or ())
        low, high = self._bounds()
        if self.kind == "int_uniform":
            return IntDistribution(int(low), int(high))
        if self.kind == "q_uniform":
            return FloatDistribution(*self._limits(), step=self._step)
        return FloatDistribution(low, high, log="log" in self.kind)

    def _bounds(self) -> tuple[float, float]:
        assert self.min is not None and self.max is not None
        low, high = float(self.min), float(self.max)
        return (math.exp(low), math.exp(high)) if self.kind == "log_uniform" else (low, high)

    def _limits(self) -> tuple[float, float]:
        """Return the lowest and the highest possible value."""
        low, high = self._bounds()
        if (step := self._step) is None:
            return low, high
        first = round(low / step) * step if self.kind.startswith("q_log") else low
        return first, first + int((high - first) / step + 1e-9) * step

    @property
    def _step(self) -> float | None:
        return (self.q or 1.0) if self.kind.startswith("q_") else 1.0 if self.kind == "int_uniform" else None

    def cast(self, value: Any) -> Any:
        """Return a proposed value as the configuration takes it, rounded where the distribution requires it."""
        if self.kind.startswith("q_"):
            step, (low, high) = self.q or 1.0, self._limits()
            return self._rounded(min(max(round(value / step) * step, low), high) if "log" in self.kind else value)
        return int(value) if self.kind == "int_uniform" else value

    def _rounded(self, value: float) -> int | float:
        """Remove floating-point residue; return an int where every value is an integer."""
        value = round(value, 12)
        return int(value) if value.is_integer() and float(self.q or 1.0).is_integer() else value


def _check_exponents(low: float, high: float) -> None:
    """Raise ValueError for bounds of `log_uniform` that look like values. As in W&B, they are exponents of e."""
    if max(abs(low), abs(high)) > _LARGEST_EXPONENT or (low > 0 and high <= 1):
        meant = f"e^{low:g} to e^{high:g}"
        if high <= _LARGEST_EXPONENT and low >= -_LARGEST_EXPONENT:
            meant += f", which is {math.exp(low):.4g} to {math.exp(high):.4g}"
        raise ValueError(
            f"min and max of log_uniform are exponents of e: {low:g} and {high:g} mean {meant}; "
            "to give the bounds as values use log_uniform_values"
        )


def _short(number: float) -> str:
    text = str(number)
    return text if len(text) <= 20 else f"{text[:8]}... of {len(text)} characters"


def _check_values(values: Any) -> None:
    """Raise ValueError for too long a list and for values that are not scalars; pydantic reports other types."""
    if not isinstance(values, list):
        return
    if len(values) > MAX_POINTS:
        raise ValueError(f"values: at most {MAX_POINTS:,} values (got {len(values):,}); use min and max for a range")
    for value in values:
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"values: expected a number, a string, true, false or null (got {value!r})")
