"""The local backend: this program decides the points and schedules the trials, with no server."""

from inat_ft.sweeps.base import SweepBackend


class Local(SweepBackend):
    """Schedule trials on this machine, or on several that share a PostgreSQL database."""
