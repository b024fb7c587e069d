"""The sweeps that need no file."""

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
"""The sweep without a file."""


def strategy_sweep() -> tuple[dict[str, Any], dict[str, str]]:
    """A sweep over the installed strategies, each with the space that it declares; and those left out, with the reason."""
    spaces: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in plugins(STRATEGIES):
        try:
            space = getattr(get(STRATEGIES, name).load(), "search_space", {})
        except PluginError as error:
            left_out[name] = error.message
            continue
        if space:
            spaces[name] = {"parameters": dict(space)}
        else:
            left_out[name] = "it declares no `space` to search"
    common = {"mode": {"values": list(spaces)}, "patience": {"value": 3}}
    sweep = {
        "method": "bayes",
        "metric": {"name": "val_accuracy", "goal": "maximize"},
        "parameters": common | spaces,
    }
    return sweep, left_out
