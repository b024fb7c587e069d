"""What `inat-ft train --folds` does and shows."""

from __future__ import annotations

from pathlib import Path

from inat_ft.cli import render
from inat_ft.config import RunConfig
from inat_ft.data.manifest import find_manifest
from inat_ft.setup import Directories
from inat_ft_folds.result import CrossValidation
from inat_ft_folds.training import Callbacks, cross_validate


def run(
    config: RunConfig,
    directories: Directories,
    folds: int | None,
    callbacks: Callbacks,
    resume: Path | None,
    json: bool,
) -> None:
    """Cross-validate, or resume a cross-validation, and show the result."""
    if resume is None and not config.data.split:
        split = find_manifest()
        render.info(f"split: {split}, the newest in {split.parent}/")
        config = config.model_copy(update={"data": config.data.model_copy(update={"split": split.as_posix()})})
    try:
        found = cross_validate(config, directories, folds, callbacks, resume)
    except KeyboardInterrupt as stopped:
        render.warn("; ".join(["stopped", *getattr(stopped, "__notes__", ["no fold was trained"])]))
        raise
    render.emit(json, found.to_dict(), lambda: _show(found))


def _show(found: CrossValidation) -> None:
    render.table(found.table)
    accuracy = found.accuracy
    render.echo(
        f"{found.summary.folds} folds: validation accuracy {accuracy.mean:.4f} ± {accuracy.deviation:.4f} "
        f"({accuracy.lowest:.4f} to {accuracy.highest:.4f})"
    )
    render.echo(f"out-of-fold predictions: {found.predictions}")
    render.echo(f"run:  {found.directory}")
    for note in found.summary.notes:
        render.info(f"note: {note}")
    render.info(f"next: inat-ft compare {found.directory} OTHER (another cross-validation on the same folds)")
