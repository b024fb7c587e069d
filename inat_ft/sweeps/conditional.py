"""Parameters that apply to some trials only: options of one strategy, and settings under a strategy's name.

In a sweep over several modes, `unfreeze_from` applies only to the modes that have this option. `full.lr` (or `lr` nested
under `full`) applies only to mode full, in place of `lr`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from inat_ft.config import RunConfig
from inat_ft.errors import ConfigError, did_you_mean
from inat_ft.registry import STRATEGIES, get, plugins
from inat_ft.settings import ALIASES, expand_key

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
        raise ConfigError(
            f"parameters.{name}: no trial of this sweep has mode {owner}", f"add {owner} to the values of mode"
        )
    having = [owner] if owner else modes
    known = tuple(dict.fromkeys(option for mode in having for option in options(mode)))
    if having and key.startswith("strategy.") and key not in (MODE, *known):
        word = key.partition(".")[2]
        raise ConfigError(
            f"parameters.{name}: {' and '.join(having)} {'has' if len(having) == 1 else 'have'} no option '{word}'"
            + did_you_mean(word, [option.partition(".")[2] for option in known]),
            "list the options of a strategy: inat-ft strategies NAME",
        )
