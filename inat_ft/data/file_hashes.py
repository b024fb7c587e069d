"""Whether the images are still those that were split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.manifest import Manifest
from inat_ft.data.verify import changed_rows, check_root
from inat_ft.errors import DataError, InatFtError
from inat_ft.progress import ProgressBar
from inat_ft.records import atomic_write
from inat_ft.text import pluralize

_NAMED = 5
_STATS = 3


def verify_hashes(
    manifest: Manifest, subsets: Sequence[str], cache: Path | None, policy: str, progress: ProgressBar
) -> Sequence[str]:
    """The SHA-256 in hex of each image of a manifest, for these subsets as the files are now: what caches find them by.

    A file is hashed once; after that it counts as unchanged while its size, its time of modification and its time of status
    change stay the same, as in git's index. Without a cache each is hashed. policy: error raises DataError naming the first
    images that are gone or have other content than when split; ignore takes those that changed as they are now, and those
    that are gone as they were.
    """
    if policy == "error":
        check_root(manifest)
    name = hashlib.sha256(f"{manifest.fingerprint} {manifest.root}".encode()).hexdigest()[:24]
    file = cache and cache / "verified" / f"{name}.npy"
    rows = np.concatenate([manifest.rows(subset) for subset in subsets])
    seen = _seen(file, len(manifest.paths))
    now = _stats(manifest, rows)
    doubtful = rows[(now != seen[rows]).any(1) | (now[:, 1] == 0)]
    if not len(doubtful):
        return manifest.hashes
    with progress("checking files") as update:
        changed = changed_rows(manifest, doubtful, update)
    if changed and policy == "error":
        raise _refusal(manifest, changed)
    if file:
        seen[rows] = now
        seen[list(changed)] = 0
        with suppress(InatFtError), atomic_write(file) as temporary, temporary.open("wb") as out:
            np.save(out, seen)  # where it cannot be written, the next run looks again: no reason not to train
    hashes = list(manifest.hashes)
    for row, name in changed.items():
        hashes[row] = name or hashes[row]
    return hashes


def _refusal(manifest: Manifest, changed: dict[int, str]) -> DataError:
    gone = sum(not name for name in changed.values())
    numbers = ((gone, "gone or unreadable"), (len(changed) - gone, "changed"))
    told = ", ".join(f"{pluralize(number, 'image')} {what}" for number, what in numbers if number)
    named = ", ".join(manifest.paths[row] for row in list(changed)[:_NAMED])
    more = f" and {len(changed) - _NAMED:,} more" if len(changed) > _NAMED else ""
    as_they_are = "" if gone else "\ntrain on changed images as they are now: inat-ft train --set data.changed=ignore"
    return DataError(
        f"{told} since {manifest.path} was written: {named}{more}",
        f"see what: inat-ft split --check {manifest.path}\nbring them back, or split again{as_they_are}",
    )


def _stats(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return size in bytes, mtime and ctime in ns of each file, `[N, 3]`; zeros where there is none.

    The ctime changes with the content even where a program sets the mtime back.
    """
    found = np.zeros((len(rows), _STATS), np.int64)
    for place, row in enumerate(rows):
        try:
            stat = os.stat(manifest.root / manifest.paths[row])
        except OSError:
            continue
        found[place] = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return found


def _seen(file: Path | None, count: int) -> NDArray[np.int64]:
    nothing = np.zeros((count, _STATS), np.int64)
    if not file:
        return nothing
    try:
        with file.open("rb") as opened:
            seen = np.load(opened, allow_pickle=False)
    except Exception:  # of a damaged file numpy raises what it likes
        return nothing
    is_whole = isinstance(seen, np.ndarray) and seen.shape == nothing.shape and seen.dtype == nothing.dtype
    return seen if is_whole else nothing
