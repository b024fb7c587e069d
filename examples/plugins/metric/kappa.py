"""A metric in a package of its own: Cohen's kappa."""

import numpy as np

from inat_ft.metrics import Metric


class Kappa(Metric):
    """Agreement of predictions and true classes beyond chance (Cohen 1960)."""

    label = "Cohen's kappa"
    bounds = (-1.0, 1.0)

    def value(self, predictions):
        true, predicted = (
            np.bincount(labels, minlength=len(predictions.classes)) / len(predictions)
            for labels in (predictions.true, predictions.predicted)
        )
        chance = (true * predicted).sum()
        return (predictions.correct.mean() - chance) / (1 - chance) if chance < 1 else 0.0
