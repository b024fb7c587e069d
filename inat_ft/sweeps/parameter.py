"""One parameter of a sweep: a value, a list of values, or a range with a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_POINTS = 2000
"""A space with more points than this is searched as if it had no end."""
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


class Part(BaseModel):
    """A part of a sweep's file: frozen, with no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Parameter(Part):
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
