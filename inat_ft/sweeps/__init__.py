"""Sweeps: a search over settings, described by a file in W&B's format."""

from inat_ft.sweeps.base import SweepBackend, SweepState, SweepStatus, TrialJob

__all__ = ["SweepBackend", "SweepState", "SweepStatus", "TrialJob"]
