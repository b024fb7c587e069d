"""Networks: backbones build a classifier, and Net splits it into stages and replaces its head."""

from inat_ft.models.base import Backbone, Preprocess, PretrainedWeights

__all__ = ["Backbone", "Preprocess", "PretrainedWeights"]
