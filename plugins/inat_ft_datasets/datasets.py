"""The data sets that `inat-ft fetch` downloads or writes, and the checks that they are complete."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from inat_ft.crash import redact
from inat_ft.errors import DataError
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft_datasets import digits
from inat_ft_datasets.atomic_dir import file_lock
from inat_ft_datasets.http import download, require_request
from inat_ft_datasets.unzip import ArchiveError, unpack

INAT12K_URL = "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"
INAT12K_CLASSES = (
    *("Amphibia", "Animalia", "Arachnida", "Aves", "Fungi"),
    *("Insecta", "Mammalia", "Mollusca", "Plantae", "Reptilia"),
)
_INSIDE = "inaturalist_12K"
_NOTE = ".fetched.json"
"""File in the folder with the number of images in the archive."""
_NOT_IMAGES = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class FetchResult:
    """A complete data set on disk."""

    folder: Path
    num_images: int
    new: bool
    """False if it existed before."""
    warning: str = ""


def fetch_digits(to: Path) -> FetchResult:
    """Write the embedded digits to `to/digits`, unless they exist."""
    folder = to / "digits"
    exists = digits.is_complete(folder)
    digits.write_digits(folder)
    return FetchResult(folder, _counts(folder).total(), not exists)


def fetch_inat12k(
    to: Path,
    url: str = INAT12K_URL,
    *,
    sha256: str | None = None,
    keep_archive: bool = False,
    log: Log = ignore_log,
    progress: ProgressBar = no_progress,
) -> FetchResult:
    """Download iNaturalist-12K and unpack it to `to/inaturalist_12K`, unless it exists.

    An archive `to/nature_12K.zip` is used if it exists. It is removed after unpacking, unless keep_archive is true. Raises
    DataError if the download or the archive is not valid, or if the disk is full.
    """
    require_request(url, sha256)
    folder, archive = to / _INSIDE, to / "nature_12K.zip"
    new = False
    if not (counts := _counts(folder)) or counts.total() != _expected_count(folder):
        if (folder.is_symlink() and not folder.exists()) or (folder.exists() and not folder.is_dir()):
            raise DataError(f"{folder} is not a folder", "remove it, or choose another place with --to")
        with file_lock(folder, lambda: log(f"waiting for another process that is fetching {folder}")):
            new = not folder.is_dir() or not any(folder.iterdir())
            if new:
                _download_and_extract(url, archive, folder, sha256, log, progress)
                if not keep_archive:
                    archive.unlink(missing_ok=True)
            else:
                _require_complete(folder)
        counts = _counts(folder)
    return FetchResult(folder, counts.total(), new, _other_classes(counts))


def _download_and_extract(
    url: str, archive: Path, folder: Path, sha256: str | None, log: Log, progress: ProgressBar
) -> None:
    existed, part = archive.exists(), archive.with_name(f"{archive.name}.part")
    if existed:
        log(f"using the existing archive {archive}")
    elif part.exists():
        log(f"resuming an earlier download: {part.stat().st_size / 1e6:,.0f} MB exist")
    with progress("fetching", "MB") as update:
        download(url, archive, sha256=sha256, progress=lambda done, total: update(done // 10**6, total // 10**6))
    try:
        with progress("unpacking", "files") as update:
            unpack(archive, folder, _INSIDE, update, check=_check_unpacked)
    except ArchiveError as error:
        if existed:
            raise DataError(error.message, f"remove {archive} and fetch again") from error
        archive.unlink()
        raise DataError(
            f"{redact(url)} is not the data set: {error.message}", "the archive was removed; use another mirror"
        ) from error


def _counts(folder: Path) -> Counter[tuple[str, str]]:
    """Return the number of images by (subset, class folder)."""
    files = (file for file in folder.glob("*/*/*") if not file.name.startswith(".") and file.is_file())
    return Counter((file.parts[-3], file.parts[-2]) for file in files if file.name.lower() not in _NOT_IMAGES)


def _subsets_without_images(folder: Path) -> str:
    subsets = {subset for subset, _ in _counts(folder)}
    return " and ".join(f"{subset}/" for subset in ("train", "val") if subset not in subsets)


def _check_unpacked(folder: Path) -> None:
    if empty := _subsets_without_images(folder):
        raise ArchiveError(f"no class folders with images in {empty}")
    if (folder / _NOTE).is_dir():
        raise ArchiveError(f"it contains a folder {_NOTE}")
    note = json.dumps({"images": _counts(folder).total()})
    (folder / _NOTE).write_text(note + "\n", encoding="utf-8", newline="\n")


def _require_complete(folder: Path) -> None:
    number, expected = _counts(folder).total(), _expected_count(folder)
    problem = ""
    if empty := _subsets_without_images(folder):
        problem = f"no class folders with images in {empty}"
    elif number < expected:
        problem = f"only {number:,} of {expected:,} images exist"
    if problem:
        raise DataError(f"{folder} is not complete: {problem}", f"remove {folder} and fetch again")


def _expected_count(folder: Path) -> int:
    """Return the number of images in the archive, 0 if it is unknown."""
    try:
        return int(json.loads((folder / _NOTE).read_text(encoding="utf-8"))["images"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def _other_classes(counts: Counter[tuple[str, str]]) -> str:
    """Return a warning if the classes are not the ten of iNaturalist-12K; a mirror can have a part of them on purpose."""
    for subset in ("train", "val"):
        found = {name for part, name in counts if part == subset}
        missing = ", ".join(name for name in INAT12K_CLASSES if name not in found)
        more = ", ".join(sorted(found.difference(INAT12K_CLASSES)))
        if missing or more:
            differences = [f"missing: {missing}"] * bool(missing) + [f"more: {more}"] * bool(more)
            return f"{subset}/ has {len(found)} class folders, not the 10 of iNaturalist-12K ({'; '.join(differences)})"
    return ""
