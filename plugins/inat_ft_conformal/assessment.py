"""Measure prediction sets and accepted images on the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inat_ft.metrics.base import Predictions
from inat_ft.metrics.bounds import Floats
from inat_ft.metrics.builtin import proportion
from inat_ft.records import MetricValue
from inat_ft.tables import Table, Tabular
from inat_ft_conformal.selective import ACCURACIES, Selection, risk_coverage, select
from inat_ft_conformal.sets import in_set


@dataclass(frozen=True)
class Assessment(Tabular):
    """Prediction sets on test images, and the images that are accepted without review.

    covered: share of sets with the true class, of all images and by class; accepted: share of sets with one class;
    accepted_accuracy: accuracy on these; selections: the same for target accuracies.
    """

    coverage: float
    by_class: bool
    num_calibration: int
    covered: MetricValue
    covered_by_class: dict[str, MetricValue]
    mean_size: float
    accepted: MetricValue
    accepted_accuracy: MetricValue
    selections: Sequence[Selection]

    @property
    def table(self) -> Table:
        """The selections, one row each."""
        columns = {
            "target accuracy": ".0%",
            "probability at least": ".4f",
            "need no review": ".1%",
            "their accuracy": ".1%",
            "95% interval": "",
        }
        rows = [
            (
                each.accuracy,
                each.confidence,
                each.share.value,
                each.reached.value if each.reached.low is not None else None,
                _interval(each.reached),
            )
            for each in self.selections
        ]
        title = f"images that need no review; probabilities chosen on {self.num_calibration:,} validation images"
        return Table(columns, rows, title)

    @property
    def summary(self) -> str:
        """Sentences on the sets, and on the lowest target accuracy for which some images need review."""
        one = f"{self.accepted.value:.1%} of the images have one class in their set (accepted)"
        right = f"; {self.accepted_accuracy.value:.1%} of these are correct" if self.accepted.value else ""
        lines = [
            f"prediction sets for coverage {self.coverage:g}: {self.covered.value:.1%} contain the true class "
            f"(95% interval {_interval(self.covered)}); mean size {self.mean_size:.2f}; {one}{right}"
        ]
        reached = [each for each in self.selections if each.confidence is not None]
        if chosen := next((each for each in reached if each.share.value < 1), reached[-1] if reached else None):
            share = f"{chosen.share.value:.0%} of the images need no review"
            lines.append(f"at {chosen.accuracy:.0%} accuracy, {share}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft eval --coverage --json` prints it under `conformal`."""
        return {
            "coverage": self.coverage,
            "by_class": self.by_class,
            "num_calibration": self.num_calibration,
            "covered": _numbers(self.covered),
            "covered_by_class": {name: _numbers(value) for name, value in self.covered_by_class.items()},
            "mean_size": self.mean_size,
            "accepted": _numbers(self.accepted),
            "accepted_accuracy": _numbers(self.accepted_accuracy),
            "selections": [
                asdict(each) | {"share": _numbers(each.share), "reached": _numbers(each.reached)}
                for each in self.selections
            ],
        }


def assess(
    validation: Predictions, test: Predictions, thresholds: Floats, coverage: float, by_class: bool
) -> Assessment:
    """Measure the sets with these thresholds `[C]` on test predictions. The classes of both are in the same order."""
    members = in_set(test.require_probabilities(), thresholds)
    covered, sizes = members[np.arange(len(test)), test.true], members.sum(1)
    alone = sizes == 1
    curve = risk_coverage(validation)
    return Assessment(
        coverage=coverage,
        by_class=by_class,
        num_calibration=len(validation),
        covered=proportion(int(covered.sum()), len(test)),
        covered_by_class={
            name: proportion(int(covered[test.true == label].sum()), int((test.true == label).sum()))
            for label, name in enumerate(test.classes)
        },
        mean_size=float(sizes.mean()),
        accepted=proportion(int(alone.sum()), len(test)),
        accepted_accuracy=proportion(int(test.correct[alone].sum()), int(alone.sum())),
        selections=[select(curve, test, accuracy) for accuracy in ACCURACIES],
    )


def _interval(value: MetricValue) -> str | None:
    return None if value.low is None or value.high is None else f"{value.low:.1%} to {value.high:.1%}"


def _numbers(value: MetricValue) -> dict[str, float | None]:
    """Return a share with its interval; None for all if there is no image."""
    known = value.low is not None
    return {"value": value.value if known else None, "low": value.low, "high": value.high}
