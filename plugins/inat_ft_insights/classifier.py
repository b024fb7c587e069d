"""The head on frozen features: L2-regularized multinomial logistic regression."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError
from inat_ft_insights.features import Floats, Ints

_STRENGTHS = (1e-2, 1e-1, 1.0, 10.0)
"""Values of C, the inverse of the strength of the penalty, for standardized features whose norm is about 10."""
_FOLDS = 5


@dataclass(frozen=True)
class Head:
    """A fitted classifier. classes: the labels that it knows, ascending."""

    model: Any
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    num_classes: int

    def probabilities(self, values: NDArray[np.float32]) -> Floats:
        """Return probabilities `[N, C]`; 0 for classes that had no training image."""
        found = np.zeros((len(values), self.num_classes))
        if len(values):
            found[:, self.model.classes_] = self.model.predict_proba((values - self.mean) * self.scale)
        return found


def fit_head(values: NDArray[np.float32], labels: Ints, num_classes: int, strength: float) -> Head:
    """Fit a classifier to features `[N, D]` and labels `[N]` with at least two classes.

    strength: C of scikit-learn. The features are standardized with the mean and the deviation of these images.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = values.mean(0), values.std(0)
    scale = (1 / np.where(deviation > 1e-6, deviation, 1.0) / np.sqrt(values.shape[1]) * 10).astype(np.float32)
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early only regularizes a little more
        model.fit((values - mean) * scale, labels)
    return Head(model, mean, scale, num_classes)


def fold_numbers(labels: Ints, groups: Ints, seed: int) -> Ints:
    """Return the fold of each image: stratified by class, and groups kept together.

    Raises DataError if no class has two images or groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    units = [len(np.unique(groups[labels == label])) for label in np.unique(labels)]
    folds = min(_FOLDS, max(min(units), 2))
    if len(np.unique(groups)) < folds or max(units) < 2:
        raise DataError("no class has two images or groups, so no image can be predicted from the others", "add images")
    splitter, numbers = StratifiedGroupKFold(folds, shuffle=True, random_state=seed), np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            numbers[held_out] = fold
    return numbers


def out_of_fold(values: NDArray[np.float32], labels: Ints, folds: Ints, num_classes: int, strength: float) -> Floats:
    """Return for each image the probabilities `[N, C]` of a classifier that was fitted without its fold."""
    found = np.zeros((len(labels), num_classes))
    for fold in np.unique(folds):
        inside = folds != fold
        if len(np.unique(labels[inside])) < 2:
            found[~inside, labels[inside][0]] = 1.0
        else:
            head = fit_head(values[inside], labels[inside], num_classes, strength)
            found[~inside] = head.probabilities(values[~inside])
    return found


def choose_strength(
    values: NDArray[np.float32], labels: Ints, groups: Ints, num_classes: int, seed: int
) -> tuple[float, Floats]:
    """Return the strength with the lowest out-of-fold log loss, and the out-of-fold probabilities for it."""
    folds, best = fold_numbers(labels, groups, seed), (np.inf, _STRENGTHS[0], np.empty(0))
    for strength in _STRENGTHS:
        found = out_of_fold(values, labels, folds, num_classes, strength)
        loss = -np.log(found[np.arange(len(labels)), labels].clip(1e-6)).mean()
        if loss < best[0]:
            best = (float(loss), strength, found)
    return best[1], best[2]
