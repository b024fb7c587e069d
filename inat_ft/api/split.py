"""Split a folder of images into training, validation and test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from inat_ft.data.leakage import Findings
from inat_ft.data.manifest import SUBSETS, Manifest
from inat_ft.data.split import SplitOptions, split_images
from inat_ft.images.decode import MAX_PIXELS
from inat_ft.progress import Log, ProgressFn, ignore_log, ignore_progress
from inat_ft.tables import Column, Table

if TYPE_CHECKING:
    from os import PathLike

Rank = Literal["kingdom", "phylum", "class", "order", "family", "genus", "species"]


class Imbalance(NamedTuple):
    """The classes with the most and the fewest training images."""

    most: str
    fewest: str
    ratio: float
    """Training images of `most` divided by those of `fewest`, 1 or more."""


@dataclass(frozen=True)
class SplitResult:
    """A split: its manifest, and the duplicates and label conflicts that were found.

    `train(split=result)` trains on it.
    """

    manifest: Manifest
    findings: Findings
    is_new: bool
    """False if the same manifest was there already."""
    warnings: Sequence[str] = ()
    """Messages about classes that are probably not as intended."""

    def __fspath__(self) -> str:
        return os.fspath(self.manifest.path)

    @property
    def path(self) -> Path:
        """Path of the manifest."""
        return self.manifest.path

    @property
    def imbalance(self) -> Imbalance:
        """The class imbalance of the training images."""
        train = {name: row["train"] for name, row in self.manifest.counts().items()}
        most, fewest = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
        return Imbalance(most, fewest, train[most] / train[fewest])

    @property
    def table(self) -> Table:
        """Images by class (one row each, then the total) and subset."""
        rows = [(name, *row.values(), sum(row.values())) for name, row in self.manifest.counts().items()]
        totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
        columns = [Column("class"), *(Column(name, ",", right=True) for name in (*SUBSETS, "all"))]
        return Table(columns, [*rows, ("total", *totals)])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft split --json` prints it."""
        manifest, findings = self.manifest, self.findings
        return {
            "manifest": manifest.path.as_posix(),
            "fingerprint": manifest.fingerprint,
            "seed": manifest.seed,
            "layout": manifest.made["layout"],
            "test_fraction": manifest.made["test_fraction"],
            "classes": list(manifest.classes),
            "counts": manifest.counts(),
            "imbalance": self.imbalance.ratio,
            "left_out": [{"path": left.path, "reason": left.text} for left in manifest.left_out],
            "exact_copies": findings.exact_groups,
            "near_copies": findings.near_groups,
            "leaked": [{"train": train, "test": test} for train, test in findings.leaked],
            "leaked_to_val": [{"train": train, "val": val} for train, val in findings.leaked_val],
            "label_conflicts": findings.conflicts,
            "near_label_conflicts": findings.near_conflicts,
            "classes_without_test": findings.classes_without_test,
        }

    def __str__(self) -> str:
        return f"{self.table}\nmanifest: {self.path}"

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def split(
    data: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    val_fraction: float = 0.2,
    test_fraction: float | None = None,
    seed: int = 0,
    group_by: str | None = None,
    leakage: Literal["drop", "keep", "error"] = "drop",
    near: bool = True,
    source: str | None = None,
    classes_from: Rank | None = None,
    exclude: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
    workers: int = 0,
    force: bool = False,
    progress: ProgressFn = ignore_progress,
    log: Log = ignore_log,
    warn: Log = ignore_log,
) -> SplitResult:
    """Split images into training, validation and test images, and write a manifest.

        result = inat_ft.split("photos", out="splits/photos.csv")

    Decode each image once. Leave out files that are not images, and keep duplicates in one subset.

    Args:
        data: a folder with one folder per class, with or without `train/`, `val/` and `test/` above them; or a CSV file.
        out: the manifest to write. Default: `splits/NAME_OF_THE_FOLDER.csv`.
        val_fraction: fraction of each class for validation, 0.01 to 0.9.
        test_fraction: fraction of each class for the test set, 0 to 0.9. Default: 0.2, or 0 if `data` has a test set.
        seed: the same seed gives the same split.
        group_by: keep images together by a regular expression on file names, or by a CSV file with `path,group`.
        leakage: what to do with training images that are duplicates of test images.
        near: search for resized and recompressed duplicates as well.
        source: name of the data source. Default: the first one that recognizes `data`.
        classes_from: use a taxonomic rank as the class, for folders named as in iNaturalist 2021.
        exclude: glob patterns of files and folders to leave out.
        max_pixels: leave out larger images (width times height).
        strict: raise DataError if a file is not a usable image.
        workers: threads that decode images; 0 uses one per core.
        force: replace a different manifest at `out`.
        progress: called with (done, total) images.
        log: called with each message.
        warn: called with each warning as soon as it is known; the result holds them too.

    Raises:
        UsageError: `data` is missing, or `out` or a fraction cannot be used.
        DataError: a class has too few images, or no image is usable.
    """
    heard: list[str] = []

    def hear(warning: str) -> None:
        heard.append(warning)
        warn(warning)

    options = SplitOptions(
        val_fraction,
        test_fraction,
        seed,
        leakage,
        near,
        group_by,
        source,
        classes_from,
        tuple(exclude),
        max_pixels,
        strict,
        workers,
    )
    made = split_images(
        Path(data),
        Path(out) if out else None,
        options,
        force=force,
        log=log,
        warn=hear,
        progress=lambda what, unit="images": nullcontext(progress),
    )
    return SplitResult(made.manifest, made.findings, made.written, tuple(heard))
