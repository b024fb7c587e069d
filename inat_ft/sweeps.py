"""The public names of sweeps, of tunings and of cross-validations, and the base class of sweep backends."""

from inat_ft_folds.result import CrossValidation
from inat_ft_sweeps.api import SweepResult, TuneResult, sweep, tune
from inat_ft_sweeps.base import SweepBackend

__all__ = ["CrossValidation", "SweepBackend", "SweepResult", "TuneResult", "sweep", "tune"]
