"""Split a folder of images into training, validation and test images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inat_ft.data.split import SplitOptions, SplitResult, split_images
from inat_ft.images.decode import MAX_PIXELS
from inat_ft.progress import Log, ProgressFn, ignore_log, ignore_progress

if TYPE_CHECKING:
    from os import PathLike

Rank = Literal["kingdom", "phylum", "class", "order", "family", "genus", "species"]


def split(
    data: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    val_fraction: float = 0.2,
    test_fraction: float | None = None,
    seed: int = 0,
    source: str | None = None,
    group_by: str | None = None,
    corrections: str | PathLike[str] | None = None,
    leakage: Literal["drop", "keep", "error"] = "drop",
    near: bool = True,
    classes_from: Rank | None = None,
    exclude: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
    workers: int = 0,
    pack: Sequence[str | int] = (),
    cache_dir: str | PathLike[str] | None = None,
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
        out: manifest file to write. Default: `splits/NAME_OF_THE_FOLDER.csv`.
        val_fraction: fraction of each class for validation, 0.01 to 0.9.
        test_fraction: fraction of each class for the test set, 0 to 0.9. Default: 0.2, or 0 if `data` has a test set.
        seed: the same seed gives the same split.
        source: name of the data source. Default: the first that recognizes `data`.
        group_by: keep images together by a regular expression on file names, or by a CSV file with `path,group`.
        corrections: a reviewed CSV file of `inat-ft audit`, with `path,verdict`; verdicts are ok, drop or a class.
        leakage: what to do with training images that are duplicates of test images.
        near: search for resized and recompressed duplicates as well.
        classes_from: taxonomic rank to use as class: from a column of the CSV, or from folders as in iNaturalist 2021.
        exclude: glob patterns of files and folders to leave out.
        max_pixels: leave out larger images (width times height).
        strict: raise DataError if a file is not a usable image.
        workers: threads that decode images; 0 uses one per core.
        pack: sizes at which to cache the images too, such as 224 or `224:crop`, so that training does not decode them.
        cache_dir: folder for caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        force: replace a different manifest at `out`.
        progress: called with (done, total) images.
        log: called with each message.
        warn: called with each warning as soon as it is known; the result holds them too.

    Raises:
        UsageError: `data` is missing, or `out` or a fraction cannot be used.
        DataError: a class has too few images, or no image is usable.
    """
    options = {name: value for name, value in locals().items() if name in SplitOptions.__dataclass_fields__}
    return split_images(
        Path(data),
        Path(out) if out else None,
        SplitOptions(
            **{
                **options,
                "exclude": tuple(exclude),
                "corrections": Path(corrections) if corrections else None,
                "pack": tuple(map(str, pack)),
                "cache_dir": Path(cache_dir) if cache_dir else None,
            }
        ),
        force=force,
        log=log,
        warn=warn,
        progress=lambda what, unit="images": nullcontext(progress),
    )
