"""Whether the images are still those that were split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.data.check import changed_files
from inat_ft.data.manifest import Manifest
from inat_ft.errors import DataError
from inat_ft.records import replacing

_NAMED = 5

TickFor = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def require_unchanged(manifest: Manifest, subsets: Sequence[str], cache: Path, policy: str, tick_for: TickFor) -> None:
    """Raise DataError naming the first images of these subsets that are gone or have other content than when split.

    A file is hashed once; after that its size and time of change speak for it, as they do in git's index. policy: error,
    or ignore, which looks at nothing.
    """
    if policy == "ignore":
        return
    name = hashlib.sha256(f"{manifest.fingerprint} {manifest.root}".encode()).hexdigest()[:24]
    file = cache / "verified" / f"{name}.npy"
    rows = np.concatenate([manifest.rows(subset) for subset in subsets])
    seen = _seen(file, len(manifest.paths))
    now = _stats(manifest, rows)
    doubtful = rows[(now != seen[rows]).any(1) | (now[:, 1] == 0)]
    if not len(doubtful):
        return
    with tick_for("checking files") as tick:
        changed = changed_files(manifest, doubtful, tick)
    if changed:
        more = f" and {len(changed) - _NAMED:,} more" if len(changed) > _NAMED else ""
        raise DataError(
            f"{len(changed):,} images changed since {manifest.path} was written: {', '.join(changed[:_NAMED])}{more}",
            f"see what: inat-ft split --check {manifest.path}\nsplit again, or go on all the same: --set data.changed=ignore",
        )
    seen[rows] = now
    with replacing(file) as temporary, temporary.open("wb") as out:
        np.save(out, seen)


def _stats(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Size in bytes and time of change in ns of each file, `[N, 2]`; zeros where there is none."""
    found = np.zeros((len(rows), 2), np.int64)
    for place, row in enumerate(rows):
        try:
            stat = os.stat(manifest.root / manifest.paths[row])
        except OSError:
            continue
        found[place] = stat.st_size, stat.st_mtime_ns
    return found


def _seen(file: Path, count: int) -> NDArray[np.int64]:
    try:
        seen = np.load(file, allow_pickle=False)
    except (OSError, ValueError):
        return np.zeros((count, 2), np.int64)
    return seen if seen.shape == (count, 2) else np.zeros((count, 2), np.int64)
