"""Results by taxonomic rank, as records hold them, and their table."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from inat_ft.records import MetricValue
from inat_ft.tables import Table
from inat_ft.text import pluralize


class RankMetrics(BaseModel):
    """The results at a rank; `label` stands for the classes themselves.

    accuracy: of the taxon with the highest probability, the sum over its classes, for all images. num_reported: images whose
    prediction is rolled up to this rank; num_correct: those of them whose taxon is correct.
    """

    rank: str
    num_taxa: int
    accuracy: MetricValue
    num_reported: int
    num_correct: int


class TaxaEvaluation(BaseModel):
    """The results by rank, from the classes up.

    rollup: smallest probability of a reported taxon. num_unsure: images without such a taxon at any rank. accuracy: share of
    the reported images whose taxon is correct; None if none is reported.
    """

    rollup: float
    ranks: list[RankMetrics]
    num_unsure: int
    accuracy: MetricValue | None


def rank_table(taxa: dict[str, Any]) -> tuple[Table, str]:
    """Return the table of `inat-ft eval --taxa`, and the sentence below it."""
    found = TaxaEvaluation.model_validate(taxa)
    columns = {"rank": "", "taxa": ",", "accuracy": ".4f", "95% interval": "", "reported": ",", "correct": ","}
    rows = [
        (
            each.rank,
            each.num_taxa,
            each.accuracy.value,
            f"{each.accuracy.low:.4f} to {each.accuracy.high:.4f}",
            each.num_reported,
            each.num_correct,
        )
        for each in found.ranks
    ]
    title = f"ranks: an image is reported at the lowest rank where a taxon has at least {found.rollup:.0%} probability"
    correct = f"; of the others, {found.accuracy.value:.2%} have the correct taxon" if found.accuracy else ""
    return Table(columns, rows, title), f"unsure at all ranks: {pluralize(found.num_unsure, 'image')}{correct}"
