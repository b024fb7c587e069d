"""What learns: a strategy declares it, the engine acts on it."""

from inat_ft.strategies.base import Group, Strategy

__all__ = ["Group", "Strategy"]
