"""Sweeps: one file of W&B's format, tried on this machine, on many, or through W&B."""
