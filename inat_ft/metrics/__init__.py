"""Metrics: the base class for plugins, the built-in metrics, and metrics by name."""

from inat_ft.metrics.base import MeanMetric, Metric, Predictions, get_metric, installed_metrics
from inat_ft.metrics.bounds import Contributions

__all__ = ["Contributions", "MeanMetric", "Metric", "Predictions", "get_metric", "installed_metrics"]
