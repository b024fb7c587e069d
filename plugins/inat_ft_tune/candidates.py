"""The settings that are tried: heads, and strategies with learning rates, in the order of priority."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from inat_ft.config import RunConfig
from inat_ft.errors import PluginError, UsageError, did_you_mean
from inat_ft.registry import STRATEGIES, get, plugins
from inat_ft.settings import Override
from inat_ft_tune.planner import MAX_EPOCHS

LADDER = (1e-3, 1e-4, 3e-4, 3e-3)
"""Learning rates of Adam; the first is tried first."""
_HEAD_LADDER, _DROPOUTS = (3e-3, 1e-3, 1e-2, 3e-4), (0.3, 0.0, 0.5)
_SGD = 10.0
_RATE_WEIGHT = 4
"""Of a strategy, the second learning rate comes after the first one of the four next strategies."""
_SMALL, _SMALL_BATCH = 2000, 32
_FIRST = ("partial", "full", "lp-ft", "surgical", "lora", "gradual", "discriminative")
"""Strategies that are tried before others, which follow by name."""
_SECTIONS = ("data", "model", "optim", "stop", "compute")

Params = dict[str, Any]


def is_given(config: RunConfig, key: str) -> bool:
    """Return whether a setting was given, and is not a default."""
    section, _, name = key.partition(".")
    return name in getattr(config, section).model_fields_set


def common_settings(config: RunConfig, split: str, num_train: int) -> list[Override]:
    """Return the settings of all runs: those given, and what depends on the data.

    Without a given batch size, few training images have batches of 32, so that an epoch has enough steps.
    """
    dump = config.model_dump(mode="json")
    settings = {f"{section}.{key}": value for section in _SECTIONS for key, value in dump[section].items()}
    settings["data.split"] = split
    if not is_given(config, "optim.batch_size") and num_train < _SMALL:
        settings["optim.batch_size"] = _SMALL_BATCH
    if not is_given(config, "optim.epochs"):
        settings["optim.epochs"] = MAX_EPOCHS
    return [(key, value) for key, value in settings.items() if value is not None]


def chosen_strategies(names: Sequence[str], log: Any) -> list[str]:
    """Return the strategies to try besides the head, in the order of priority. Raises UsageError for an unknown name.

    By default all that have a search space, as in `inat-ft sweep create --strategies`.
    """
    known = plugins(STRATEGIES)
    for name in names:
        if name not in known:
            raise UsageError(f"unknown strategy '{name}'{did_you_mean(name, known)}", f"known: {', '.join(known)}")
    found = []
    for name in names or known:
        try:
            loaded = get(STRATEGIES, name).load()
        except PluginError as error:
            log(f"warning: {error.message}; skipped")
            continue
        if names or getattr(loaded, "search_space", None):
            found.append(name)
    first = [name for name in _FIRST if name in found and not names]
    return [*first, *(name for name in found if name != "head" and name not in first)]


def head_params(config: RunConfig) -> list[Params]:
    """Return the settings of the heads."""
    rates = _rates(config, _HEAD_LADDER)
    dropouts = [config.model.dropout] if is_given(config, "model.dropout") else _DROPOUTS
    return [{"optim.lr": lr, "model.dropout": dropout} for dropout, lr in product(dropouts, rates)]


def strategy_params(config: RunConfig, strategies: Iterable[str]) -> Mapping[str, tuple[str, Params]]:
    """Return the strategy and the settings of each candidate by name, in the order of priority."""
    ranked = []
    for place, strategy in enumerate(strategies):
        space = getattr(get(STRATEGIES, strategy).load(), "search_space", {})
        own = space.get("lr", {}).get("values", ()) if isinstance(space.get("lr"), Mapping) else ()
        rates = dict.fromkeys([*_rates(config, LADDER), *([] if is_given(config, "optim.lr") else own)])
        ranked += [(_RATE_WEIGHT * number + place, strategy, float(lr)) for number, lr in enumerate(rates)]
    ranked.sort(key=lambda each: each[0])
    return {f"{strategy}-lr{lr:g}": (strategy, {"optim.lr": lr}) for _, strategy, lr in ranked}


def _rates(config: RunConfig, ladder: Sequence[float]) -> list[float]:
    if is_given(config, "optim.lr"):
        return [config.optim.lr]
    return [lr * (_SGD if config.optim.optimizer == "sgd" else 1.0) for lr in ladder]
