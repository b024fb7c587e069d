"""Compare the image files on disk with a manifest, and list what differs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from inat_ft.cli import render
from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.data.sources.base import Exclusions, ImageList, ReadOptions, Reason, find_images
from inat_ft.data.verify import changed_rows, check_root
from inat_ft.errors import InatFtError
from inat_ft.images.boxes import file_of
from inat_ft.images.decode import MAX_PIXELS
from inat_ft.images.scan import scan
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.text import few
from inat_ft.threads import num_cores

_MAY_BECOME_USABLE = (Reason.UNUSABLE, Reason.PLACE, Reason.NAME, Reason.EXCLUDED)


def check(path: Path, json: bool) -> None:
    """Compare the images with the manifest and print what differs; exit with code 1 if anything does."""
    manifest = read_manifest(path)
    with render.progress("checking", "files") as update:
        found = check_manifest(manifest, update)
    kinds = {"missing": found.missing, "changed": found.changed, "new": found.new}
    if json:
        render.echo_json(kinds)
    elif not found:
        render.echo(f"all {len(manifest.paths):,} images match {path}")
    else:
        for kind, names in kinds.items():
            if names:
                render.echo(f"{kind}: {len(names):,}: {few(names)}")
    if found:
        raise typer.Exit(1)


@dataclass(frozen=True)
class ManifestDiff:
    """Files that differ from the manifest, by path relative to the root."""

    missing: list[str]
    changed: list[str]
    new: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.new)


def check_manifest(manifest: Manifest, progress: ProgressFn) -> ManifestDiff:
    """Compare every image with the disk, and labels with the file that lists them.

    Files that were left out as unusable and are usable now count as new. Raises DataError if the folder of the images is
    missing.
    """
    check_root(manifest)
    differing = [manifest.paths[row] for row in changed_rows(manifest, np.arange(len(manifest.paths)), progress)]
    missing = [path for path in differing if not os.path.isfile(manifest.root / file_of(path))]
    images = _read_again(manifest)
    if images.listing:
        now = {row.path: row.label for row in images.rows}
        corrections = manifest.made.get("corrections", {}).get("relabelled", {})
        now |= {path: new for path, (old, new) in corrections.items() if now.get(path) == old}
        labels = [manifest.classes[label] for label in manifest.labels.tolist()]
        differing += [path for path, label in zip(manifest.paths, labels, strict=True) if now.get(path, label) != label]
    reasons = {left.path: left.reason for left in manifest.left_out}
    retried = [path for path in images.paths if reasons.get(path) in _MAY_BECOME_USABLE]
    scanned = scan(manifest.root, retried, MAX_PIXELS, num_cores(), False, ignore_progress)
    usable = {path for path, why in zip(retried, scanned.problems, strict=True) if not why}
    known, gone = {*manifest.paths, *reasons} - usable, set(missing)
    changed = dict.fromkeys(path for path in differing if path not in gone)
    return ManifestDiff(missing, list(changed), [path for path in images.paths if path not in known])


def _read_again(manifest: Manifest) -> ImageList:
    """Return the images that a split of the same data set lists now; none if it cannot be read any more."""
    made = manifest.made
    listing = Path(made.get("csv", "")).name  # without folders: a manifest can come from someone else
    options = ReadOptions(Exclusions(made.get("exclude", ())), manifest.path)
    try:
        return find_images(manifest.root / listing, made.get("source"), options)
    except InatFtError:  # such as a class folder that is empty now
        return ImageList(manifest.root, "")
