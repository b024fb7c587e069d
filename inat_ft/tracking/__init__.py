"""Who listens to a run while it trains."""

import os

from inat_ft.config import TrackConfig
from inat_ft.errors import UsageError
from inat_ft.tracking.base import NullTracker, Tracker

_WANDB_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}

__all__ = ["NullTracker", "Tracker", "tracker_for"]


def tracker_for(config: TrackConfig) -> Tracker:
    """Return the tracker that the settings and WANDB_MODE ask for.

    Raises UsageError for an unknown WANDB_MODE, and InatFtError when the server cannot be reached.
    """
    mode = _wandb_mode(config.wandb) if config.wandb != "off" else "disabled"
    if mode == "disabled":
        return NullTracker()
    from inat_ft.tracking.wandb import WandbTracker, require_server

    if mode == "online":
        require_server()
    return WandbTracker(config.model_copy(update={"wandb": mode}))


def _wandb_mode(configured: str) -> str:
    """Return online, offline or disabled. As in W&B, WANDB_MODE decides; it does not put an offline run online."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if mode and mode not in _WANDB_MODES:
        raise UsageError(f"WANDB_MODE={mode} is unknown", "set it to online, offline or disabled, or unset it")
    wanted = _WANDB_MODES.get(mode, configured)
    return configured if wanted == "online" else wanted
