"""Taxa of the classes at each rank, from a CSV or from folder names, and predictions at these ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inat_ft_groups.groups import clustered, members
from numpy.typing import NDArray

from inat_ft.data.manifest import Manifest
from inat_ft.errors import UsageError
from inat_ft.evaluation.prediction import Taxon
from inat_ft.evaluation.predictions import from_probabilities, read_csv
from inat_ft.metrics.base import Predictions
from inat_ft.metrics.bounds import Floats
from inat_ft.metrics.builtin import proportion
from inat_ft.records import MetricValue
from inat_ft_taxa.results import RankMetrics, TaxaEvaluation
from inat_ft_taxa.taxa import RANKS, taxa_of

_FORMAT = "write a CSV whose first line is label,genus,family,order; one row per class"
_LABEL = "label"

Lineage = tuple[str, ...]
"""The taxa of a class from the kingdom to the species; "" where unknown."""


@dataclass(frozen=True)
class _Rank:
    """The taxa of a rank. members: int64 `[C]`, the number of the taxon of each class."""

    name: str
    taxa: tuple[str, ...]
    members: NDArray[np.int64]

    def sum(self, probabilities: Floats) -> Floats:
        """Return the probabilities of the taxa, `[N, T]`, from those of the classes, `[N, C]`."""
        found = np.zeros((len(probabilities), len(self.taxa)))
        np.add.at(found.T, self.members, probabilities.T)
        return np.minimum(found, 1.0)


@dataclass(frozen=True)
class Taxonomy:
    """The ranks from the classes up."""

    ranks: Sequence[_Rank]

    def roll_up(self, probabilities: Floats, least: float) -> Taxon:
        """Return the most probable taxon of the lowest rank at which it has at least this probability."""
        taxon = Taxon("", "", 0.0)
        for rank in self.ranks:
            found = rank.sum(probabilities[None])[0]
            best = int(found.argmax())
            if found[best] >= least:
                return Taxon(rank.taxa[best], rank.name, float(found[best]))
            taxon = Taxon("", "", max(taxon.probability, float(found[best])))
        return taxon

    def evaluate(self, predictions: Predictions, least: float, manifest: Manifest, subset: str) -> dict[str, Any]:
        """Return the accuracy at each rank, and how often and how correctly predictions are rolled up to it."""
        groups = members(manifest, subset) if manifest.made.get("group_by") else None
        left, right, ranks = np.ones(len(predictions), bool), np.zeros(len(predictions), bool), []
        for rank in self.ranks:
            p = rank.sum(predictions.require_probabilities())
            true, best = rank.members[predictions.true], p.argmax(1)
            reported = left & (p.max(1) >= least)
            correct = np.equal(best, true)
            right |= reported & correct
            left &= ~reported
            ranks.append(
                RankMetrics(
                    rank=rank.name,
                    num_taxa=len(rank.taxa),
                    accuracy=_share(correct, groups),
                    num_reported=int(reported.sum()),
                    num_correct=int((reported & correct).sum()),
                )
            )
        sure = np.flatnonzero(~left)
        accuracy = _share(right[sure], None if groups is None else groups[sure]) if len(sure) else None
        found = TaxaEvaluation(rollup=least, ranks=ranks, num_unsure=int(left.sum()), accuracy=accuracy)
        return found.model_dump(mode="json")


def load_taxonomy(source: str, classes: tuple[str, ...], manifest: Callable[[], Manifest]) -> Taxonomy:
    """Return the taxa of the classes from a CSV, or from the folders of the manifest's images if the source is `folders`.

    Raises UsageError or RecordError.
    """
    known = _from_folders(classes, manifest) if source == "folders" else read_lineages(Path(source))
    if missing := [name for name in classes if name not in known]:
        raise UsageError(f"--taxa {source} has no row for the class '{missing[0]}'", "add a row; taxa may be empty")
    ranks = [_Rank(_LABEL, classes, np.arange(len(classes)))]
    for number in reversed(range(len(RANKS))):
        rank = _rank(number, {name: known[name] for name in classes})
        repeats_classes = rank.name == "species" and len(rank.taxa) == len(classes)
        if any(known[name][number] for name in classes) and not repeats_classes:
            ranks.append(rank)
    if len(ranks) == 1:
        raise UsageError(f"--taxa {source} has no taxa of the classes", _FORMAT)
    return Taxonomy(ranks)


def read_lineages(file: Path) -> dict[str, Lineage]:
    """Return the taxa of each label of a CSV with the column `label` and columns named by ranks."""
    header, rows = read_csv(file, (_LABEL,))
    columns = [name.strip().lower() for name in header]
    present = [rank for rank in RANKS if rank in columns]
    if _LABEL not in columns or not present:
        raise UsageError(f"--taxa {file} needs the column label and at least one rank: {', '.join(RANKS)}", _FORMAT)
    if repeated := [name for name in (_LABEL, *present) if columns.count(name) > 1]:
        raise UsageError(f"--taxa {file} has the column {repeated[0]} twice", "remove or rename one of them")
    found: dict[str, Lineage] = {}
    for line, cells in rows:
        if len(cells) != len(columns):
            raise UsageError(f"--taxa {file}, line {line}: {len(cells)} values for {len(columns)} columns", _FORMAT)
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        lineage = tuple(row.get(rank, "") for rank in RANKS)
        if found.setdefault(row[_LABEL], lineage) != lineage:
            raise UsageError(
                f"--taxa {file}, line {line}: the label '{row[_LABEL]}' has other taxa above", "remove one row"
            )
    return found


def _from_folders(classes: tuple[str, ...], manifest: Callable[[], Manifest]) -> dict[str, Lineage]:
    """Return the ranks at which all folders of a class agree."""
    found = {name: lineage for name in classes if (lineage := taxa_of(name))}
    if len(found) < len(classes):
        split = manifest()
        folders = {(name, label) for name, label in zip(map(_folder, split.paths), split.labels.tolist(), strict=True)}
        for name, label in sorted(folders):
            lineage = next((each for part in reversed(name.split("/")) if (each := taxa_of(part))), ())
            if lineage:
                before = found.setdefault(split.classes[label], lineage)
                depth = next((n for n in range(len(RANKS)) if before[n] != lineage[n]), len(RANKS))
                found[split.classes[label]] = (*lineage[:depth], *[""] * (len(RANKS) - depth))
    if not found:
        raise UsageError(
            "--taxa folders: no folder of the images is named like 00012_Kingdom_Phylum_Class_Order_Family_Genus_species",
            f"pass a file instead: {_FORMAT}",
        )
    return {name: found.get(name, ("",) * len(RANKS)) for name in classes}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _rank(number: int, known: Mapping[str, Lineage]) -> _Rank:
    """Return the taxa of a rank. A class without one keeps its own name; taxa with other parents differ."""
    keys = [(*above[: number + 1], "") if above[number] else ("", name) for name, above in known.items()]
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    names = tuple(key[-2] if key[-1] == "" else key[-1] for key in order)
    return _Rank(RANKS[number], names, np.array([order[key] for key in keys]))


def _share(correct: NDArray[np.bool_], groups: NDArray[np.int64] | None) -> MetricValue:
    """Return the share of correct images with its interval; groups: `[N]`, the group of each image, None without groups."""
    share = proportion(int(correct.sum()), len(correct))
    if groups is None:
        return share
    numbers = np.unique(groups, return_inverse=True)[1]
    p = np.stack([~correct, correct], 1).astype(np.float64)
    images = from_probabilities(("no", "yes"), (), (), np.ones(len(correct), np.int64), p)
    return clustered(images, {"accuracy": share}, numbers)["accuracy"]
