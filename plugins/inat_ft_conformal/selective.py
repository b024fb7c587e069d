"""Accuracy against the share of images that are accepted without review, the most confident first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inat_ft.metrics.base import Predictions
from inat_ft.metrics.bounds import Floats
from inat_ft.metrics.builtin import proportion
from inat_ft.records import MetricValue

ACCURACIES = (0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Curve:
    """For each distinct confidence, descending: the images that are at least as confident.

    confidence: `[K]`; accepted, wrong: their number and the number of wrong predictions among them, `[K]`.
    """

    confidence: Floats
    accepted: Floats
    wrong: Floats

    @property
    def share(self) -> Floats:
        """Share of all images that are accepted."""
        return np.asarray(self.accepted / self.accepted[-1])

    @property
    def accuracy(self) -> Floats:
        """Accuracy on the accepted images."""
        return np.asarray(1 - self.wrong / self.accepted)

    def confidence_for(self, accuracy: float) -> float | None:
        """Return the lowest confidence whose accepted images reach an accuracy, None if there is none.

        One more wrong image is counted, because another image may be wrong although no calibration image is.
        """
        place = self._last_with(accuracy)
        return None if place is None else float(self.confidence[place])

    def share_for(self, accuracy: float) -> float:
        """Return the share of images that are accepted with that confidence."""
        place = self._last_with(accuracy)
        return 0.0 if place is None else float(self.share[place])

    def _last_with(self, accuracy: float) -> int | None:
        reached = np.flatnonzero((self.wrong + 1) / (self.accepted + 1) <= 1 - accuracy + 1e-12)
        return int(reached[-1]) if len(reached) else None


def risk_coverage(predictions: Predictions) -> Curve:
    """Return the curve of predictions with probabilities."""
    confidence = predictions.require_probabilities().max(1)
    order = np.argsort(-confidence, kind="stable")
    values, accepted = confidence[order], np.arange(1.0, len(order) + 1)
    last = np.append(values[1:] != values[:-1], True)
    return Curve(values[last], accepted[last], (~predictions.correct[order]).cumsum()[last].astype(np.float64))


@dataclass(frozen=True)
class Selection:
    """Images that are accepted for a target accuracy.

    confidence: lowest accepted probability, None if the accuracy is not reached; share: accepted share of the images;
    reached: accuracy on the accepted images.
    """

    accuracy: float
    confidence: float | None
    share: MetricValue
    reached: MetricValue


def select(curve: Curve, predictions: Predictions, accuracy: float) -> Selection:
    """Choose the confidence for an accuracy with a calibration curve, and apply it to other predictions."""
    confidence = curve.confidence_for(accuracy)
    highest = predictions.require_probabilities().max(1)
    accepted = highest >= (np.inf if confidence is None else confidence)
    number, right = int(accepted.sum()), int(predictions.correct[accepted].sum())
    return Selection(accuracy, confidence, proportion(number, len(predictions)), proportion(right, number))
