"""Metrics that are the mean of one number per image."""

from __future__ import annotations

import math

import numpy as np

from inat_ft.metrics.base import MeanMetric
from inat_ft.metrics.bounds import Contributions
from inat_ft.metrics.predictions import Floats, Predictions
from inat_ft.metrics.proportions import proportion
from inat_ft.records import MetricValue

EPS = 1e-15


class Accuracy(MeanMetric):
    """Share of images whose prediction is correct."""

    unit = "%"
    bounds = (0.0, 1.0)

    def per_image(self, predictions: Predictions) -> Floats:
        """Return 1 for a correct image, else 0."""
        return predictions.correct.astype(np.float64)

    def interval(self, predictions: Predictions) -> MetricValue:
        """Return the share with its Wilson or exact interval."""
        return proportion(round(float(self.per_image(predictions).sum())), len(predictions))


class Top3Accuracy(Accuracy):
    """Share of images whose class is among the three most probable ones."""

    label = "top-3 accuracy"
    needs_probabilities = True

    def per_image(self, predictions: Predictions) -> Floats:
        """Return 1 where fewer than three classes are more probable than the true one, else 0."""
        p = predictions.require_probabilities()
        rank = (p > p[np.arange(len(p)), predictions.true][:, None]).sum(1)
        hits: Floats = (rank < 3).astype(np.float64)
        return hits


class LogLoss(MeanMetric):
    """Mean negative log probability of the true class."""

    unit = "nats"
    needs_probabilities = True
    higher_is_better = False
    bounds = (0.0, math.inf)

    def per_image(self, predictions: Predictions) -> Floats:
        """Return the loss of each image in nats."""
        p = predictions.require_probabilities()
        losses: Floats = -np.log(np.clip(p[np.arange(len(p)), predictions.true], EPS, 1))
        return losses

    def contributions(self, predictions: Predictions) -> Contributions:
        """Return the losses; the largest possible one is the largest seen, or the mean over all wrong classes."""
        losses = -np.log(np.clip(predictions.require_probabilities(), EPS, 1))
        found = losses[np.arange(len(predictions)), predictions.true]
        others = losses.shape[1] - 1
        if_wrong = float((losses.sum(1) - found).mean()) / others if others else 0.0
        return Contributions(found, 0.0, max(float(found.max()), if_wrong))


class Brier(MeanMetric):
    """Mean squared distance of the probabilities from the true class, summed over all classes (Brier 1950)."""

    label = "Brier score"
    needs_probabilities = True
    higher_is_better = False
    bounds = (0.0, 2.0)

    def per_image(self, predictions: Predictions) -> Floats:
        """Return the squared distance of each image, 0 to 2."""
        truth = np.eye(len(predictions.classes))[predictions.true]
        squares: Floats = ((predictions.require_probabilities() - truth) ** 2).sum(1)
        return squares
