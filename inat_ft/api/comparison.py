"""Compare classifiers on the same test images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft.evaluation import compare as comparison
from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.compare import differing_settings, interval_text, other_minus_reference, score_interval
from inat_ft.paths import is_cross_validation
from inat_ft.registry import FEATURES, get
from inat_ft.tables import Table

if TYPE_CHECKING:
    from inat_ft.api.train import RunLike


@dataclass(frozen=True)
class Comparison(comparison.Comparison):
    """A comparison: its conclusion, its table, and the results of the tests.

        comparison = inat_ft.compare(run_a, run_b)
        comparison.to_html("report.html")

    `summary` is the conclusion in a few sentences, and `pairs` holds the test of the reference against each other classifier.
    """

    @property
    def table(self) -> Table:
        """One row per classifier, the best first, with its difference to the reference and the cost of its training.

        The columns of intervals hold (low, high), or None if the interval is not known.
        """
        columns: dict[str, Any] = {
            "name": "",
            self.scored_by.label: ".4f",
            "95% interval": interval_text,
            f"difference to {self.reference}": "+.4f",
            "interval of the difference": interval_text,
            "p (Holm)": ".2g",
            "trained": ",",
            "epochs": "d",
            "seconds": ",.1f",
        }
        return Table(columns, [self._row(candidate) for candidate in self.candidates])

    def _row(self, candidate: Candidate) -> tuple[Any, ...]:
        record, score = candidate.record, candidate.score
        pair = next((pair for pair in self.pairs if pair.second == candidate.name), None)
        value, *interval = (pair and other_minus_reference(pair)) or (None,)
        return (
            candidate.name,
            score.value if score else None,
            score_interval(candidate),
            value,
            tuple(interval) or None,
            pair.p_holm if pair else None,
            record.parameters.trained if record.parameters else None,
            len(record.history) or None,
            record.seconds.get("total"),
        )

    @property
    def settings(self) -> Mapping[str, tuple[str, ...]]:
        """Configuration keys whose values differ, with the value of each classifier in the order of the table."""
        return differing_settings([candidate.record for candidate in self.candidates])

    def to_html(self, file: str | os.PathLike[str]) -> Path:
        """Write a report with figures as one HTML file, and return its path. Raises StorageError."""
        get(FEATURES, "html-report").load()(self, Path(file))
        return Path(file)

    def __str__(self) -> str:
        return "\n".join([str(self.table), *(f"note: {remark}" for remark in self.remarks), self.summary])

    def _repr_html_(self) -> str:
        return f"{self.table._repr_html_()}<p>{escape(self.summary)}</p>"


def compare(*runs: RunLike, metric: str = "accuracy", group: bool = False, margin: float | None = None) -> Comparison:
    """Compare two or more classifiers on their test images, with paired tests.

        comparison = inat_ft.compare(run_a, run_b, margin=0.01)
        print(comparison.summary)

    Evaluate the runs first. A record of another program requires `name` and `test_accuracy`.

    Args:
        *runs: Runs, run folders, record.json files, or folders of run folders; or folders of cross-validations.
        metric: `accuracy`, `balanced_accuracy`, `macro_f1`, `log_loss`, or another metric of `inat-ft eval`.
        group: treat runs that differ only in their seed as one classifier.
        margin: a difference below it is considered equivalent, such as 0.01. Default: do not test equivalence.

    Raises:
        UsageError: there are fewer than two runs, a run is missing, or the metric is unknown.
        RecordError: a record or its predictions are damaged.
    """
    if any(is_cross_validation(Path(run)) for run in runs):
        found: Comparison = get(FEATURES, "folds-compare").load()([Path(run) for run in runs], metric, group, margin)
        return found
    return Comparison(**vars(comparison.compare([Path(run) for run in runs], metric, group, margin)))
