"""The manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inat_ft.errors import DataError, UsageError
from inat_ft.records import write_text

SUBSETS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    path: Path
    root: Path
    classes: tuple[str, ...]
    paths: Sequence[str]
    labels: np.ndarray
    subsets: np.ndarray
    hashes: Sequence[str]
    fingerprint: str
    left_out: Sequence[tuple[str, str]] = ()
    seed: int = 0

    def rows(self, subset: str) -> np.ndarray:
        return np.flatnonzero(self.subsets == SUBSETS.index(subset))

    def subset_fingerprint(self, subset: str) -> str:
        pairs = sorted(f"{self.hashes[row]} {self.classes[self.labels[row]]}" for row in self.rows(subset))
        return hashlib.sha256("\n".join(pairs).encode()).hexdigest()

    def counts(self):
        return {c: {s: int(((self.labels == i) & (self.subsets == k)).sum()) for k, s in enumerate(SUBSETS)} for i, c in enumerate(self.classes)}


def read_manifest(path: Path, root: Path | None = None) -> Manifest:
    try:
        lines = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such manifest: {path}", "make one: inat-ft split DATA") from None
    first, _, rest = lines.partition("\n")
    header = json.loads(first.removeprefix("# inat-ft manifest "))
    rows = list(csv.DictReader(io.StringIO(rest)))
    index = {c: i for i, c in enumerate(header["classes"])}
    return Manifest(
        path, root or (path.parent / header["root"]).resolve(), tuple(header["classes"]), [r["path"] for r in rows],
        np.array([index[r["label"]] for r in rows], np.int64), np.array([SUBSETS.index(r["subset"]) for r in rows], np.uint8),
        [r["sha256"] for r in rows], header["fingerprint"],
    )


def find_manifest(folder: Path = Path("splits")) -> Path:
    found = sorted(folder.glob("*.csv"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        raise UsageError(f"no split found under {folder}/", "make one: inat-ft split DATA")
    return found[-1]
