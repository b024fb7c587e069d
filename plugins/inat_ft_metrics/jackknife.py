"""The contributions of images to any smooth metric, which `inat_ft.metrics.base.Metric` has by default."""

from __future__ import annotations

import numpy as np

from inat_ft.metrics.base import Metric, Predictions
from inat_ft.metrics.bounds import Contributions, Floats

_GROUPS = 500  # groups that are left out when images differ in more than their classes


def jackknife(metric: Metric, p: Predictions) -> Contributions:
    """Return the jackknife pseudo-values of a metric (Efron and Stein 1981), shifted so that their mean is the metric.

    Without probabilities, images with the same true and predicted class contribute the same, so one of each is left out.
    Otherwise at most 500 random groups of images are left out, and there is one contribution for each. Images of
    `p.groups` are left out together.
    """
    whole, number = float(metric.value(p)), len(p)
    if not np.isfinite(whole):
        raise ValueError(f"value() returned {whole}")
    if number == 1:
        return Contributions(np.array([whole]), *_range(metric, p, whole, np.zeros(1), 1))
    if metric.needs_probabilities:
        unit = np.arange(number) if p.groups is None or number <= _GROUPS else p.groups
        count = int(unit.max()) + 1
        parts = np.random.default_rng(0).permutation(count) if count > _GROUPS else np.arange(count)
        groups = [np.flatnonzero(np.isin(unit, part)) for part in np.array_split(parts, min(count, _GROUPS))]
        member = np.arange(len(groups))
    else:
        _, first, member = np.unique(p.true * len(p.classes) + p.predicted, return_index=True, return_inverse=True)
        groups = np.split(first, len(first))
    without = np.array([metric.value(p.take(np.delete(np.arange(number), group))) for group in groups])[member]
    factor = len(without) - 1
    influence = factor * (without.mean() - without)
    least, most = _range(metric, p, whole, influence, number / len(without))
    return Contributions(whole + influence, least, most, bias=factor * float(without.mean() - whole))


def _range(metric: Metric, p: Predictions, whole: float, influence: Floats, group_size: float) -> tuple[float, float]:
    """Return the range of a contribution: of those seen, and of one more correct or wrong image of any class."""
    found = influence.tolist()
    order = np.argsort(-np.bincount(p.predicted, minlength=len(p.classes)), kind="stable").tolist()
    for label in np.unique(p.true).tolist():
        source = int(np.flatnonzero(p.true == label)[0])
        for predicted in (label, next((other for other in order if other != label), label)):
            more = p.take(np.append(np.arange(len(p)), source))
            if more.probabilities is not None:
                row = more.probabilities[-1]
                row[[more.predicted[-1], predicted]] = row[[predicted, more.predicted[-1]]]
            more.predicted[-1] = predicted
            found.append((len(p) + 1) * (float(metric.value(more)) - whole) / group_size)
    return whole + min(found), whole + max(found)
