"""A manifest held against the disk."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.manifest import Manifest
from inat_ft.data.sources.base import Files, LeftOut, Reason
from inat_ft.data.sources.find import find_images
from inat_ft.errors import DataError, InatFtError
from inat_ft.images.decode import MAX_PIXELS, sha256_of
from inat_ft.images.scan import scan
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.threads import num_cores

_THREADS = 8
_DECODABLE = (Reason.TOO_LARGE, Reason.COPY, Reason.GROUP, Reason.LABEL_CONFLICT)


@dataclass(frozen=True)
class ManifestDiff:
    """Paths, relative to the root, that are not as the manifest says."""

    missing: list[str]
    changed: list[str]
    new: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.new)


def check_manifest(manifest: Manifest, progress: ProgressFn) -> ManifestDiff:
    """Compare every image with the disk, and labels with the CSV that they came from.

    New images are looked for, too, among them files that were unusable and are not any more. Raises DataError when the
    folder of the images is gone.
    """
    check_root(manifest)
    changed = changed_rows(manifest, np.arange(len(manifest.paths)), progress)
    differing = [manifest.paths[row] for row in changed]
    missing = [path for path in differing if not os.path.isfile(manifest.root / path)]  # nor where none may look
    gone = set(missing)
    files, left_out = _present(manifest), {left.path: left for left in manifest.left_out}
    present = files.paths if files else []
    if files and files.csv:
        labels = dict(zip(files.paths, files.labels, strict=True))
        own = zip(manifest.paths, manifest.labels.tolist(), strict=True)
        differing += [
            path for path, label in own if labels.get(path, manifest.classes[label]) != manifest.classes[label]
        ]
    known = {*manifest.paths, *left_out}
    mended = _usable(manifest, [path for path in present if path in left_out], left_out)
    new = [path for path in present if path not in known or path in mended]
    return ManifestDiff(missing, [path for path in dict.fromkeys(differing) if path not in gone], new)


def _present(manifest: Manifest) -> Files | None:
    """What is there to be split now, as far as that can be told."""
    if manifest.made.get("layout") == "CSV" and "csv" not in manifest.made:  # written before its name was kept
        return None
    try:
        listing = Path(manifest.made.get("csv", "")).name  # a name and no more: manifests come from other people, too
        return find_images(manifest.root / listing, skip=manifest.path, exclude=manifest.made.get("exclude", ()))
    except InatFtError:  # with its images missing it need not look like a data set any more
        return None


def _usable(manifest: Manifest, paths: list[str], reasons: dict[str, LeftOut]) -> set[str]:
    """Those of these left-out files that were unusable and are usable now."""
    again = [path for path in paths if reasons[path].reason not in (None, *_DECODABLE)]
    found = scan(manifest.root, again, MAX_PIXELS, num_cores(), False, ignore_progress)
    return {path for path, why in zip(again, found.problems, strict=True) if not why}


def check_root(manifest: Manifest) -> None:
    """Raise DataError when the folder of the images is gone."""
    if not manifest.root.is_dir():
        raise DataError(
            f"the folder of the images, {manifest.root}, is gone",
            f"bring it back, or move {manifest.path} along with it: the way from one to the other is in the manifest",
        )


def changed_rows(manifest: Manifest, rows: NDArray[np.int64], progress: ProgressFn) -> dict[int, str]:
    """Those of these rows whose file is not what was split: its SHA-256 in hex now, "" where it is gone or unreadable."""

    def content(row: int) -> str:
        try:
            return sha256_of(manifest.root / manifest.paths[row])
        except OSError:
            return ""

    changed = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:  # hashing releases Python's lock
        for done, (row, now) in enumerate(zip(rows.tolist(), pool.map(content, rows.tolist()), strict=True), 1):
            if now != manifest.hashes[row]:
                changed[row] = now
            progress(done, len(rows))
    return changed
