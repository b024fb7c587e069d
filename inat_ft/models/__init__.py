"""Networks: a backbone gives an ordinary classifier, of which Net makes stages and a new head."""

from inat_ft.models.base import Backbone, Preprocess, PretrainedWeights

__all__ = ["Backbone", "Preprocess", "PretrainedWeights"]
