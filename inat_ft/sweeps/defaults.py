"""The sweeps that need no file: the built-in one, and one over all strategies."""

from __future__ import annotations

from typing import Any

from inat_ft.errors import PluginError
from inat_ft.registry import STRATEGIES, get, plugins

BUILT_IN: dict[str, Any] = {
    "method": "bayes",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "run_cap": 22,
    "parameters": {
        "epochs": {"values": [5, 10]},
        "dropout": {"values": [0.0, 0.2, 0.3]},
        "batch_size": {"values": [32, 64]},
        "lr": {"values": [1e-3, 1e-4]},
        "mode": {"value": "head"},
        "patience": {"value": 3},
    },
}
"""The sweep of `inat-ft sweep create` without a file."""


def strategy_sweep() -> tuple[dict[str, Any], dict[str, str]]:
    """Return a sweep over the installed strategies, each in its `search_space`, and why others are skipped."""
    spaces: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in plugins(STRATEGIES):
        try:
            space = getattr(get(STRATEGIES, name).load(), "search_space", {})
        except PluginError as error:
            skipped[name] = error.message
            continue
        if space:
            spaces[name] = {"parameters": dict(space)}
        else:
            skipped[name] = "it has no `search_space`"
    common = {"mode": {"values": list(spaces)}, "patience": {"value": 3}}
    sweep = {
        "method": "bayes",
        "metric": {"name": "val_accuracy", "goal": "maximize"},
        "parameters": common | spaces,
    }
    return sweep, skipped
