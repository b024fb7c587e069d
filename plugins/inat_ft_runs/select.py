"""Filter and sort runs by their results and settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from operator import ge, gt, le, lt
from typing import Any

from inat_ft.errors import ConfigError, UsageError, did_you_mean
from inat_ft.settings import ALIASES, expand_key
from inat_ft_runs.folder import RunEntry

COLUMNS: dict[str, Callable[[RunEntry], Any]] = {
    "name": lambda run: run.name,
    "state": lambda run: run.state,
    "val_accuracy": lambda run: run.val_accuracy,
    "test_accuracy": lambda run: run.record and run.record.test_accuracy,
    "mode": lambda run: run.setting("strategy.name"),
    "backbone": lambda run: run.setting("model.backbone"),
    "lr": lambda run: run.setting("optim.lr"),
    "epochs": lambda run: len(run.history) or None,
    "seconds": lambda run: run.seconds,
    "created": lambda run: run.created,
    "val_loss": lambda run: run.best and run.best.val_loss,
    "train_loss": lambda run: run.best and run.best.train_loss,
    "train_accuracy": lambda run: run.best and run.best.train_accuracy,
    "trained_parameters": lambda run: run.record and run.record.parameters and run.record.parameters.trained,
    "peak_memory_mib": lambda run: run.record and run.record.peak_memory_mib,
}
"""The results by which runs can be filtered and sorted, besides the settings."""
_CONDITION = re.compile(r"\s*([A-Za-z][\w.]*)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*$")
_ORDER = {"<": lt, "<=": le, ">": gt, ">=": ge}


def getter(key: str) -> Callable[[RunEntry], Any]:
    """Return the function that gets a result or a setting, by the name of a column or a key of the configuration.

    Raises UsageError for an unknown name.
    """
    if key in COLUMNS:
        return COLUMNS[key]
    try:
        dotted = expand_key(key)
    except ConfigError:
        near = did_you_mean(key, (*COLUMNS, *ALIASES))
        raise UsageError(
            f"unknown column or setting '{key}'{near}",
            f"columns: {', '.join(COLUMNS)}; settings: inat-ft train --show-config",
        ) from None
    return lambda run: run.setting(dotted)


def condition(text: str) -> Callable[[RunEntry], bool]:
    """Return the test of a condition such as `mode=head`, `backbone=resnet*` or `val_accuracy>=0.9`.

    `*` and `?` are wildcards. A run without the value has the text `none`.
    Raises UsageError for another form or an unknown name.
    """
    found = _CONDITION.match(text)
    if not found:
        raise UsageError(f"--where '{text}' is not a condition", "for example: --where mode=head --where 'lr>=1e-3'")
    key, operator, wanted = found.groups()
    get, number = getter(key), _number(wanted)
    if operator in _ORDER and number is None and key != "created":
        raise UsageError(f"--where '{text}': '{wanted}' is not a number", f"for text, use {key}= or {key}!=")

    def passes(run: RunEntry) -> bool:
        value = get(run)
        if operator in _ORDER:
            right: Any = wanted if key == "created" else number
            return value is not None and not isinstance(value, bool | dict) and _ORDER[operator](value, right)
        return _equals(value, wanted, number) != (operator == "!=")

    return passes


def _equals(value: Any, wanted: str, number: float | None) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number is not None and float(value) == number
    return fnmatchcase("none" if value is None else str(value).lower(), wanted.lower())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def sort_runs(runs: Sequence[RunEntry], key: str, reverse: bool = False) -> list[RunEntry]:
    """Sort by a column or setting: numbers from the largest, text from A to Z; runs without the value come last."""
    get = getter(key)
    known = [run for run in runs if get(run) is not None]
    numeric = all(isinstance(get(run), int | float) for run in known)
    known.sort(key=lambda run: get(run) if numeric else str(get(run)), reverse=reverse != (numeric or key == "created"))
    return known + [run for run in runs if get(run) is None]
