"""Predictions on labeled images: the input of every metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """The true and predicted class of each of N images.

    hashes: SHA-256 of each file in hex, "" where unknown. true, predicted: int64 `[N]`, indices into classes.
    probabilities: float64 `[N, C]`, each row sums to 1; None when only the predicted class is known.
    """

    classes: tuple[str, ...]
    paths: Sequence[str]
    hashes: Sequence[str]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: Floats | None = None

    def __len__(self) -> int:
        return len(self.true)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, bool `[N]`."""
        right: NDArray[np.bool_] = self.true == self.predicted
        return right

    def require_probabilities(self) -> Floats:
        """Return the probabilities `[N, C]`. Raises ValueError when there are none."""
        if self.probabilities is None:
            raise ValueError("these predictions have no probabilities")
        return self.probabilities

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """Return the images at `rows`, in that order, as a copy without paths and hashes."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Predictions(self.classes, (), (), self.true[rows], self.predicted[rows], probabilities)


def from_probabilities(
    classes: Sequence[str], paths: Sequence[str], hashes: Sequence[str], true: NDArray[np.int64], p: Floats
) -> Predictions:
    """Return predictions of the class with the highest probability; p: float64 `[N, C]`."""
    return Predictions(tuple(classes), paths, hashes, true, p.argmax(1).astype(np.int64), p)
