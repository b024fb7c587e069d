"""Metrics that average over classes, and metrics of the probabilities."""
