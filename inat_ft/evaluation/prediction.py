"""The prediction for one image, and the taxa that it is rolled up to. The feature `taxonomy` implements them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from inat_ft.data.manifest import Manifest
from inat_ft.metrics.bounds import Floats
from inat_ft.registry import FEATURES, get


class Taxon(NamedTuple):
    """A taxon that a prediction was rolled up to, with its probability. An unsure prediction has neither name nor rank."""

    name: str
    rank: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image. probabilities: float64 `[C]`, in the order of the classes. taxon: with `taxa` only."""

    path: Path
    classes: Sequence[str]
    probabilities: Floats
    taxon: Taxon | None = None
    set: tuple[str, ...] | None = None
    """Prediction set, the most probable class first; None without `coverage`."""
    decision: str | None = None
    """`accept` if the set has one class, else `review`."""

    def columns(self) -> dict[str, object]:
        r"""Return CSV columns: taxon, rank, p_taxon; set, such as `cat|dog`, with `\|` and `\\` in names; and decision."""
        names = "|".join(name.replace("\\", r"\\").replace("|", r"\|") for name in self.set or ())
        share = "taxon_confidence" if "taxon" in self.classes else "p_taxon"  # which is then the column of a class
        taxon = zip(("taxon", "rank", share), self.taxon or (), strict=False)
        return {**dict(taxon), **({"set": names, "decision": self.decision} if self.set else {})}

    def top(self, number: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, the most probable first."""
        order = (-self.probabilities).argsort(kind="stable")[:number]
        return [(self.classes[place], float(self.probabilities[place])) for place in order]


def load_taxonomy(taxa: str | os.PathLike[str] | None, classes: Sequence[str], manifest: Callable[[], Manifest]) -> Any:
    """Return the taxa of the classes, an `inat_ft_taxa.taxonomy.Taxonomy`; None without `taxa`.

    taxa: a CSV, or "folders" for the folders of the images. manifest(): returns the manifest of the run.
    """
    return None if taxa is None else get(FEATURES, "taxonomy").load()(os.fspath(taxa), tuple(classes), manifest)
