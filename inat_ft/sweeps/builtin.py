"""The sweeps that need no file."""

from __future__ import annotations

from typing import Any

from inat_ft.config import section_class
from inat_ft.errors import PluginError
from inat_ft.registry import STRATEGIES, find, plugins

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


def over_strategies() -> dict[str, Any]:
    """A sweep over the installed strategies, each with the space that it declares; broken plugins are left out."""
    spaces: dict[str, Any] = {}
    for name in plugins(STRATEGIES):
        try:
            space = getattr(section_class(find(STRATEGIES, name)), "space", {})
        except PluginError:  # `inat-ft strategies` tells of it
            continue
        if space:
            spaces[name] = {"parameters": dict(space)}
    common = {"mode": {"values": list(spaces)}, "patience": {"value": 3}}
    return {
        "method": "bayes",
        "metric": {"name": "val_accuracy", "goal": "maximize"},
        "parameters": common | spaces,
    }
