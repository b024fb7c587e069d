"""One parameter of a sweep: a value, a list of values, or a range with a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inat_ft.errors import did_you_mean

if TYPE_CHECKING:
    from optuna import Trial

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
_REFUSED = {
    **dict.fromkeys(
        ("normal", "log_normal", "q_normal", "q_log_normal", "beta", "q_beta"),
        "it has no bounds to search in; give min and max",
    ),
    "q_log_uniform": "its bounds are exponents, its steps are not; take q_log_uniform_values",
    "inv_log_uniform": "its bounds are those of log(1/x); turn their signs and take log_uniform",
    "inv_log_uniform_values": "the logarithm of 1/x is as uniform as that of x; take log_uniform_values",
    "categorical_w_probabilities": "all values are equally likely before any is tried; take categorical",
}
"""W&B's further distributions, and why they are none here."""
_MIDDLE = 0.37
_LARGEST = 1e15
"""Bounds beyond it are no longer exact as floating-point numbers."""
_LARGEST_EXPONENT = 700.0


class StrictModel(BaseModel):
    """A part of a sweep's file: frozen, with no key that it does not know."""

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
    def _is_supported(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            raise ValueError(f"expected value, values, or min and max (got {raw!r})")
        kind = raw.get("distribution")
        if kind is not None and kind not in _DISTRIBUTIONS:
            if kind in _REFUSED:
                raise ValueError(f"distribution '{kind}' is not supported here: {_REFUSED[kind]}")
            near = did_you_mean(str(kind), _DISTRIBUTIONS)
            raise ValueError(f"distribution '{kind}' is unknown{near}; known: {', '.join(_DISTRIBUTIONS)}")
        for key in ("probabilities", "mu", "sigma"):
            if key in raw:
                raise ValueError(f"'{key}' is not supported here: all values are equally likely before any is tried")
        _check_values(raw.get("values"))
        for key in ("min", "max"):
            if not isinstance(raw.get(key), int | float | None) or isinstance(raw.get(key), bool):
                raise ValueError(f"{key} must be a number (got {raw[key]!r})")
        return raw

    @model_validator(mode="after")
    def _is_complete(self) -> Parameter:
        given = [key for key in ("value", "values") if key in self.model_fields_set]
        ranged = [key for key in ("min", "max") if getattr(self, key) is not None]
        if len(given) + bool(ranged) != 1 or len(ranged) == 1:
            raise ValueError("needs one of: value; values; min and max")
        if ranged:
            assert self.min is not None and self.max is not None
            if max(abs(self.min), abs(self.max)) > _LARGEST or not (
                math.isfinite(self.min) and math.isfinite(self.max)
            ):
                raise ValueError(
                    f"min and max must be numbers up to {_LARGEST:g} (got {_short(self.min)}, {_short(self.max)})"
                )
            if not self.min < self.max:
                raise ValueError(f"min must be below max (got {self.min} and {self.max})")
            if self.kind.startswith(("log_uniform_values", "q_log")) and self.min <= 0:
                raise ValueError(f"min must be above 0 for {self.kind} (got {self.min})")
            if self.kind == "log_uniform":
                _check_exponents(self.min, self.max)
            if self.kind == "int_uniform" and not (float(self.min).is_integer() and float(self.max).is_integer()):
                raise ValueError(f"int_uniform takes whole numbers (got {self.min} and {self.max})")
        if self.q is not None and not self.kind.startswith("q_"):
            raise ValueError(f"q goes with a distribution that rounds, such as q_uniform, and not with {self.kind}")
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
            return _distinct(self.values)
        low, high = self._bounds()
        step = (self.q or 1.0) if self.kind.startswith("q_") else 1.0
        if self.kind.startswith(("q_", "int_")) and (high - low) / step < MAX_POINTS:
            first = round(low / step) * step if self.kind.startswith("q_log") else low
            return [self._rounded(first + step * place) for place in range(int((high - first) / step + 1e-9) + 1)]
        return None

    def extremes(self) -> list[Any]:
        """Values to try against the configuration: all, or both ends of the range and one between them."""
        if (choices := self.choices()) is not None:
            return choices
        low, high = self._bounds()
        return [self.cast(value) for value in (low, high, low + _MIDDLE * (high - low))]

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value that Optuna's trial proposes, as the configuration takes it; for spaces without an end of points."""
        if self.values is not None:
            return trial.suggest_categorical(name, self.choices() or ())
        low, high = self._bounds()
        if self.kind == "int_uniform":
            return trial.suggest_int(name, int(low), int(high))
        if self.kind == "q_uniform":
            return self._rounded(trial.suggest_float(name, low, high, step=self.q or 1.0))
        return self.cast(trial.suggest_float(name, low, high, log="log" in self.kind))

    def _bounds(self) -> tuple[float, float]:
        assert self.min is not None and self.max is not None
        low, high = float(self.min), float(self.max)
        return (math.exp(low), math.exp(high)) if self.kind == "log_uniform" else (low, high)

    def cast(self, value: float) -> int | float:
        """A value between the bounds as the configuration takes it: rounded where the distribution says so."""
        if self.kind.startswith("q_log"):
            return self._rounded(round(value / (self.q or 1.0)) * (self.q or 1.0))
        return int(value) if self.kind == "int_uniform" else value

    def _rounded(self, value: float) -> int | float:
        """Without what floating point adds; whole numbers as such where every value is one."""
        value = round(value, 12)
        return int(value) if value.is_integer() and float(self.q or 1.0).is_integer() else value


def _distinct(values: list[Any]) -> list[Any]:
    """Return each value once, in order. 1 and 1.0 are equal; true and 1 are as well, as in Python."""
    return list(dict.fromkeys(values))


def _check_exponents(low: float, high: float) -> None:
    """Raise ValueError for bounds of `log_uniform` that are values: as in W&B, they are exponents of e."""
    if max(abs(low), abs(high)) > _LARGEST_EXPONENT:
        raise ValueError(
            f"the bounds of log_uniform are exponents: exp({low:g}) to exp({high:g}) is out of range; "
            "for bounds that are values use log_uniform_values"
        )
    if low > 0 and high <= 1:
        meant = f"{math.exp(low):.4g} to {math.exp(high):.4g}"
        raise ValueError(
            f"the bounds of log_uniform are exponents: {low:g} and {high:g} mean {meant}; "
            "for bounds that are values use log_uniform_values"
        )


def _short(number: float) -> str:
    text = str(number)
    return text if len(text) <= 20 else f"{text[:8]}... of {len(text)} characters"


def _check_values(values: Any) -> None:
    """Raise ValueError for a list of too many values, or of values that are no scalars; other types are pydantic's."""
    if not isinstance(values, list):
        return
    if len(values) > MAX_POINTS:
        raise ValueError(f"values: at most {MAX_POINTS:,} values (got {len(values):,}); use min and max for a range")
    for value in values:
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"values: a value is a number, a word, true, false or null (got {value!r})")
