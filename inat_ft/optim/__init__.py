"""Optimizers: the base class that a plugin derives from."""

from inat_ft.optim.base import Optimizer

__all__ = ["Optimizer"]
