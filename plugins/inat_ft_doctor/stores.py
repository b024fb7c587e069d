"""The caches on disk: their sizes, and how they are removed."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_ft.locks import FileLock

KINDS = ("packed", "prefix")
_DIGEST = 32


@dataclass(frozen=True)
class StoreSize:
    """Disk usage of a store; size in bytes."""

    folder: Path
    kind: str
    rows: int
    size: int
    key: dict[str, Any]


def list_stores(cache: Path) -> list[StoreSize]:
    """Return the stores in a cache folder, largest first. Folders of other programs are not among them."""
    found = []
    for description in (file for kind in KINDS for file in cache.glob(f"{kind}/*/key.json")):
        folder, sizes, key = description.parent, dict[str, int](), None
        with suppress(OSError):  # another process clears it
            sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            key = json.loads(description.read_bytes())["key"]
        rows = sizes.get("index.bin", 0) // _DIGEST
        key = key if isinstance(key, dict) else {}  # a store with a damaged description can still be listed and cleared
        found.append(StoreSize(folder, folder.parent.name, rows, sum(sizes.values()), key))
    return sorted(found, key=lambda store: -store.size)


def clear_store(store: StoreSize) -> None:
    """Remove a store when no process writes to it. The lock file remains, since others may wait for it."""
    with FileLock(store.folder / "lock"):
        (store.folder / "index.bin").unlink(missing_ok=True)  # first, so that no row is valid
        (store.folder / "rows.bin").unlink(missing_ok=True)
        (store.folder / "key.json").unlink(missing_ok=True)
