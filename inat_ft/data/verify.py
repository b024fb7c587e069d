"""Compare the image files on disk with a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.manifest import Manifest
from inat_ft.errors import DataError, InatFtError
from inat_ft.images.boxes import file_of
from inat_ft.images.decode import ImageProblem, sha256_of
from inat_ft.progress import ProgressBar, ProgressFn
from inat_ft.records import atomic_write
from inat_ft.text import few, pluralize

_THREADS = 8
_STATS = 3


def verify_hashes(
    manifest: Manifest, subsets: Sequence[str], cache: Path | None, policy: str, progress: ProgressBar
) -> Sequence[str]:
    """Return the SHA-256 of every image of the manifest, in hex; those of these subsets are checked against the files.

    A file is hashed once; after that it counts as unchanged while its size, mtime and ctime stay the same, as in git.
    cache: folder that stores these times; None hashes every file. policy: error raises DataError if files are missing or
    changed; ignore returns the present hash of a changed file, and the one in the manifest for a missing file.
    """
    if policy == "error":
        check_root(manifest)
    name = hashlib.sha256(f"{manifest.fingerprint} {manifest.root}".encode()).hexdigest()[:24]
    file = cache and cache / "verified" / f"{name}.npy"
    rows = np.concatenate([manifest.rows(subset) for subset in subsets])
    seen = _load_stats(file, len(manifest.paths))
    now = _stats(manifest, rows)
    unverified = rows[(now != seen[rows]).any(1) | (now[:, 1] == 0)]
    if not len(unverified):
        return manifest.hashes
    with progress("checking files", "files") as update:
        changed = changed_rows(manifest, unverified, update)
    if changed and policy == "error":
        raise _changed_error(manifest, changed)
    if file:
        seen[rows] = now
        seen[list(changed)] = 0
        with suppress(InatFtError), atomic_write(file) as temporary, temporary.open("wb") as out:
            np.save(out, seen)  # if this fails, the next run hashes the files again
    hashes = list(manifest.hashes)
    for row, sha256 in changed.items():
        hashes[row] = sha256 or hashes[row]
    return hashes


def check_root(manifest: Manifest) -> None:
    if not manifest.root.is_dir():
        raise DataError(
            f"the folder of the images does not exist: {manifest.root}",
            f"restore it; if it was moved, move {manifest.path} too, because the manifest stores a relative path to it",
        )


def changed_rows(manifest: Manifest, rows: NDArray[np.int64], progress: ProgressFn) -> dict[int, str]:
    """Return the rows whose file changed, with its SHA-256 in hex, or "" for a missing or unreadable file."""

    def sha256(row: int) -> str:
        try:
            return sha256_of(manifest.root / manifest.paths[row])
        except ImageProblem:
            return ""

    changed = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:  # hashing releases the GIL
        for done, (row, now) in enumerate(zip(rows.tolist(), pool.map(sha256, rows.tolist()), strict=True), 1):
            if now != manifest.hashes[row]:
                changed[row] = now
            progress(done, len(rows))
    return changed


def _changed_error(manifest: Manifest, changed: dict[int, str]) -> DataError:
    missing = sum(not sha256 for sha256 in changed.values())
    counts = ((missing, "missing or unreadable"), (len(changed) - missing, "changed"))
    summary = ", ".join(f"{pluralize(number, 'image')} {what}" for number, what in counts if number)
    hint = f"list them: inat-ft split --check {manifest.path}\nrestore the files, or split again: inat-ft split DATA"
    if not missing:
        hint += "\nor train on the changed images: inat-ft train --set data.changed=ignore"
    names = few([manifest.paths[row] for row in changed])
    return DataError(f"{summary} since {manifest.path} was written: {names}", hint)


def _stats(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return size in bytes, mtime and ctime in ns of each file, `[N, 3]`; zeros for a missing file.

    The ctime changes with the content even if a program restores the mtime.
    """
    found = np.zeros((len(rows), _STATS), np.int64)
    for number, row in enumerate(rows):
        with suppress(OSError):
            stat = os.stat(manifest.root / file_of(manifest.paths[row]))
            found[number] = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return found


def _load_stats(file: Path | None, count: int) -> NDArray[np.int64]:
    """Return the stored times; zeros if there are none, or the file is damaged: numpy then raises various errors."""
    with suppress(Exception), open(file or os.devnull, "rb") as opened:
        stored: NDArray[np.int64] = np.load(opened, allow_pickle=False)
        if stored.shape == (count, _STATS) and stored.dtype == np.int64:
            return stored
    return np.zeros((count, _STATS), np.int64)
