"""Fine-tuning strategies: which parameters are trainable in each epoch."""

from inat_ft.strategies.base import Group, Strategy

__all__ = ["Group", "Strategy"]
