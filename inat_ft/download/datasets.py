"""The data sets that can be fetched by name: where they come from, and what they look like when they are complete."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from inat_ft.download import digits
from inat_ft.download.atomic_dir import file_lock
from inat_ft.download.http import download, require_request
from inat_ft.download.unzip import ArchiveError, unpack
from inat_ft.errors import DataError
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress

INAT12K_URL = "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"
INAT12K_CLASSES = (
    *("Amphibia", "Animalia", "Arachnida", "Aves", "Fungi"),
    *("Insecta", "Mammalia", "Mollusca", "Plantae", "Reptilia"),
)
_INSIDE = "inaturalist_12K"
_NOTE = ".fetched.json"
"""In the folder: how many images there were when it was complete."""
_JUNK = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class FetchResult:
    """A complete data set on disk."""

    folder: Path
    num_images: int
    new: bool
    """False when it was there already."""
    warning: str = ""
    """What is unusual about it."""


def fetch_digits(to: Path) -> FetchResult:
    """Write the embedded digits to `to/digits`, unless they are there."""
    folder = to / "digits"
    there = digits.is_complete(folder)
    digits.write_digits(folder)
    return FetchResult(folder, sum(_counts(folder).values()), not there)


def fetch_inat12k(
    to: Path,
    url: str = INAT12K_URL,
    *,
    sha256: str | None = None,
    keep_archive: bool = False,
    log: Log = ignore_log,
    progress: ProgressBar = no_progress,
) -> FetchResult:
    """Download iNaturalist-12K and unpack it to `to/inaturalist_12K`, unless it is there.

    The archive is removed in the end unless keep_archive says otherwise; one that was in `to` before is used as it is. log
    gets remarks for a person. Raises DataError when the archive cannot be had, is not what it should be, or the disk is full.
    """
    require_request(url, sha256)
    folder, archive = to / _INSIDE, to / "nature_12K.zip"
    if (counts := _counts(folder)) and sum(counts.values()) == _expected_count(
        folder
    ):  # even where nothing may be written
        return FetchResult(folder, sum(counts.values()), False, _other_classes(counts))
    if (folder.is_symlink() and not folder.exists()) or (folder.exists() and not folder.is_dir()):
        raise DataError(f"{folder} is no folder", "remove it, or name another place with --to")
    with file_lock(folder, lambda: log(f"another process is fetching {folder}: waiting for it")):
        new = not folder.is_dir() or not any(folder.iterdir())
        number = sum(_counts(folder).values())
        if new:
            _download_and_extract(url, archive, folder, sha256, log, progress)
        elif empty := _subsets_without_images(folder):
            raise DataError(
                f"{folder} is no complete iNaturalist-12K: {empty} no class folders with images",
                f"remove {folder} and fetch again",
            )
        elif number < (whole := _expected_count(folder)):
            raise DataError(
                f"{folder} is not complete any more: {number:,} of {whole:,} images are there",
                f"remove {folder} and fetch again",
            )
        if new and not keep_archive:
            archive.unlink(missing_ok=True)
    counts = _counts(folder)
    return FetchResult(folder, sum(counts.values()), new, _other_classes(counts))


def _download_and_extract(
    url: str, archive: Path, folder: Path, sha256: str | None, log: Log, progress: ProgressBar
) -> None:
    was_there, part = archive.exists(), archive.with_name(f"{archive.name}.part")
    if was_there:
        log(f"{archive} is there already")
    elif part.exists():
        log(f"{part.stat().st_size / 1e6:,.0f} MB are there from an earlier download")
    with progress("fetching", "MB") as update:
        download(url, archive, sha256=sha256, progress=lambda done, total: update(done // 10**6, total // 10**6))
    try:
        with progress("unpacking", "files") as update:
            unpack(archive, folder, _INSIDE, update, check=_require_subsets)
    except ArchiveError as error:
        if was_there:
            raise DataError(error.message, f"remove {archive} and fetch again") from error
        archive.unlink()
        raise DataError(
            f"what {url} sent is not the data set: {error.message}", "it has been removed; use another mirror"
        ) from error


def _counts(folder: Path) -> Counter[tuple[str, str]]:
    """Images by (subset, class folder); hidden files and what Windows leaves are no images."""
    files = (file for file in folder.glob("*/*/*") if not file.name.startswith(".") and file.is_file())
    return Counter((file.parts[-3], file.parts[-2]) for file in files if file.name.lower() not in _JUNK)


def _subsets_without_images(folder: Path) -> str:
    counts = _counts(folder)
    empty = [subset for subset in ("train", "val") if not any(part == subset for part, _ in counts)]
    return f"{' and '.join(f'{subset}/' for subset in empty)} {'have' if len(empty) > 1 else 'has'}" if empty else ""


def _require_subsets(folder: Path) -> None:
    if empty := _subsets_without_images(folder):
        raise ArchiveError(f"{empty} no class folders with images")
    if (folder / _NOTE).is_dir():
        raise ArchiveError(f"it holds a folder {_NOTE}")
    (folder / _NOTE).write_text(json.dumps({"images": sum(_counts(folder).values())}) + "\n")


def _expected_count(folder: Path) -> int:
    """How many images were unpacked, 0 where nobody noted it."""
    try:
        return int(json.loads((folder / _NOTE).read_text())["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _other_classes(counts: Counter[tuple[str, str]]) -> str:
    """A warning when train or val has other classes than the ten: a mirror may hold less on purpose."""
    for subset in ("train", "val"):
        found = {name for part, name in counts if part == subset}
        missing = ", ".join(name for name in INAT12K_CLASSES if name not in found)
        more = ", ".join(sorted(found.difference(INAT12K_CLASSES)))
        if missing or more:
            told = "; ".join(part for part in (missing and f"missing: {missing}", more and f"more: {more}") if part)
            return f"{subset}/ has {len(found)} class folders, not the 10 of iNaturalist-12K ({told})"
    return ""
