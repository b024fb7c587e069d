"""Names of taxa in the folders of iNaturalist 2021."""

from __future__ import annotations

import re
from collections import Counter

from inat_ft.data.sources.base import ImageList

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
_TAXON = re.compile(r"\d{5}_" + "_".join(["([^_]+)"] * 7))
"""Folder name of iNaturalist 2021, such as 00012_Animalia_Annelida_..._terrestris."""


def taxa_of(folder: str) -> tuple[str, ...]:
    """Return the seven taxa in a folder's name, with the full name of the species, or () if there are none."""
    match = _TAXON.fullmatch(folder)
    return (*match.groups()[:-1], " ".join(match.groups()[-2:])) if match else ()


class Taxa:
    """Classes by taxonomic rank."""

    def __init__(self, rank: str) -> None:
        self.rank = rank

    def label(self, folder: str) -> str:
        """Return the taxon in a folder's name after all ranks above it, separated by "_", or "" if there is none."""
        match = _TAXON.fullmatch(folder)
        if not match:
            return ""
        *above, taxon = match.groups()[: RANKS.index(self.rank) + 1]
        return "_".join([*above, f"{above[-1]} {taxon}" if self.rank == "species" else taxon])

    def rename(self, found: ImageList) -> None:
        """Name each class by its taxon. Taxa with the same name get the ranks above them in parentheses."""
        taxa = {label: label.split("_") for label in found.classes}
        same_name = Counter(ranks[-1] for ranks in taxa.values())
        same_parent = Counter(tuple(ranks[-2:]) for ranks in taxa.values())
        names = {}
        for label, ranks in taxa.items():
            above = ranks[-2:-1] if same_parent[tuple(ranks[-2:])] == 1 else ranks[:-1]
            names[label] = ranks[-1] if same_name[ranks[-1]] == 1 else f"{ranks[-1]} ({' '.join(above)})"
        found.classes = set(names.values())
        for row in found.rows:
            row.label = names[row.label]
