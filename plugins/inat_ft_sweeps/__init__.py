"""Sweeps: a search over settings, described by a file in the format of W&B."""
