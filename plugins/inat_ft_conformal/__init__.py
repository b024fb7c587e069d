"""Conformal prediction sets, and accuracy against the share of images that are accepted without review."""
