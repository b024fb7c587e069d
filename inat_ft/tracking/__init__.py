"""Who listens to a run while it trains."""

from inat_ft.config import TrackConfig
from inat_ft.tracking.base import NoTracker, Tracker

__all__ = ["NoTracker", "Tracker", "tracker_for"]


def tracker_for(config: TrackConfig) -> Tracker:
    """The tracker that the settings ask for. Raises InatFtError, within 5 s, when nobody listens there."""
    if config.wandb == "off":
        return NoTracker()
    from inat_ft.tracking.wandb import WandbTracker, require_server

    if config.wandb == "online":
        require_server()
    return WandbTracker(config)
