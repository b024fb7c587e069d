"""The option `inat-ft split --corrections`: the verdicts of a reviewed CSV, applied to a manifest."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from inat_ft.data.manifest import Manifest
from inat_ft.data.sources.base import LeftOut, Reason
from inat_ft.data.sources.csv_file import read_rows
from inat_ft.errors import DataError, UsageError, did_you_mean
from inat_ft.progress import Log
from inat_ft.text import pluralize

_OK, _DROP = "ok", "drop"


def read_corrections(file: Path, classes: Collection[str]) -> Callable[[Manifest, Log], Manifest]:
    """Read the verdicts of a CSV, and return a function that corrects a manifest. Raises UsageError or DataError."""
    return partial(_apply, _read_verdicts(file, classes), file)


def _apply(verdicts: dict[str, str], file: Path, manifest: Manifest, log: Log) -> Manifest:
    """Return the manifest with the verdicts; the images that remain keep their subset.

    Raises UsageError if the verdicts are of other images, DataError if a class loses its last training or validation image.
    """
    known = {_as_read(path): path for path in manifest.paths} | {path: path for path in manifest.paths}
    verdicts = {known.get(path, path): verdict for path, verdict in verdicts.items()}
    if verdicts and verdicts.keys().isdisjoint(manifest.paths):
        raise UsageError(
            f"--corrections: {file} does not list any of the images, such as {manifest.paths[0]}",
            f"write paths relative to {manifest.root}",
        )
    if unknown := verdicts.keys() - set(manifest.paths):
        log(f"--corrections: {pluralize(len(unknown), 'verdict')} for files that are not images of the split")
    labels, index = manifest.labels.copy(), {name: number for number, name in enumerate(manifest.classes)}
    relabelled = {}
    for row, path in enumerate(manifest.paths):
        label = index.get(verdicts.get(path, ""), labels[row])
        if label != labels[row]:
            relabelled[path] = [manifest.classes[labels[row]], manifest.classes[label]]
            labels[row] = label
    keep = np.array([row for row, path in enumerate(manifest.paths) if verdicts.get(path) != _DROP], np.int64)
    gone = [path for path in manifest.paths if verdicts.get(path) == _DROP]
    dropped = [LeftOut(path, f"dropped by {file.name}", Reason.CORRECTED) for path in gone]
    columns: dict[str, Any] = {
        name: [getattr(manifest, name)[row] for row in keep] for name in ("paths", "hashes", "groups")
    }
    corrected = replace(
        manifest,
        **columns,
        labels=labels[keep],
        subsets=manifest.subsets[keep],
        left_out=sorted([*manifest.left_out, *dropped]),
        made=manifest.made | {"corrections": {"file": file.name, "dropped": len(dropped), "relabelled": relabelled}},
        fingerprint="",
    )
    for name, counts in corrected.counts().items():
        if empty := [subset for subset in ("train", "val") if not counts[subset]]:
            raise DataError(f"{file} leaves no {empty[0]} images of class '{name}'", "keep one, or add images")
    return corrected


def _as_read(path: str) -> str:
    """Return a path as `read_rows` returns it: without spaces around it, and with slashes for backslashes."""
    return PurePosixPath(path.strip(" \t").replace("\\", "/")).as_posix()


def _read_verdicts(file: Path, classes: Collection[str]) -> dict[str, str]:
    """Return the verdicts of a CSV, by path: `ok`, `drop` or a class. Rows without a verdict are skipped.

    Raises UsageError or DataError.
    """
    if not file.is_file():
        raise UsageError(f"--corrections: no such file: {file}", "pass a CSV with the columns path and verdict")
    found: dict[str, str] = {}
    for line, row in read_rows(file, "verdict"):
        verdict = row["verdict"]
        if verdict and verdict not in (_OK, _DROP, *classes):
            near = did_you_mean(verdict, (_OK, _DROP, *classes))
            raise DataError(f"{file}, line {line}: unknown verdict '{verdict}'{near}", "write ok, drop or a class")
        if verdict in classes and verdict in (_OK, _DROP):
            raise DataError(f"{file}, line {line}: '{verdict}' is a verdict and a class", "rename the class")
        if verdict and found.setdefault(row["path"], verdict) != verdict:
            raise DataError(f"{file}, line {line}: {row['path']} has two different verdicts", "remove one of the lines")
    return found
