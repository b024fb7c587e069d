"""From a file, keyword arguments and overrides to the configuration of a run, new or resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inat_ft.config import RunConfig
from inat_ft.errors import UsageError
from inat_ft.paths import cache_folder
from inat_ft.settings import Override, expand_key, expand_user, load_config

_MOVABLE = {"data.split", "data.root"}
"""Keys that can change when a run is resumed, besides those of trackers."""


def as_overrides(*mappings: Mapping[str, Any] | None) -> list[Override]:
    """Return the settings as overrides; None stands for the default.

    A key is a name such as `epochs` or a dotted key such as `optim.momentum`. Raises ConfigError for an unknown key.
    """
    pairs = [pair for mapping in mappings if mapping for pair in mapping.items()]
    return [
        (expand_key(key), os.fspath(value) if isinstance(value, os.PathLike) else value)
        for key, value in pairs
        if value is not None
    ]


def cache_directory(chosen: str | os.PathLike[str] | None) -> Path:
    """Return the chosen folder, else INAT_FT_CACHE_DIR, else the platform's folder for caches."""
    chosen = chosen or os.environ.get("INAT_FT_CACHE_DIR")
    return cache_folder(Path(chosen) if chosen else None)


def resolve_config(
    config: Path | RunConfig | None, overrides: Sequence[Override], resume: Path | None, runs_dir: Path
) -> tuple[RunConfig, Path | None]:
    """Return the configuration and, if a run is resumed, its directory. Raises UsageError or PluginError."""
    if resume is not None:
        if config or {key for key, _ in overrides if not key.startswith("track.")} - _MOVABLE:
            raise UsageError(
                "--resume takes its settings from the run, except --split, --root and those of trackers",
                f"run: inat-ft train --resume {resume}",
            )
        resume = _run_to_resume(resume, runs_dir)
        config = resume / "config.yaml"
    if isinstance(config, RunConfig):
        resolved = load_config(None, [*_flatten(config), *overrides]) if overrides else config
    else:
        resolved = load_config(config, overrides)
    if resume is not None:
        _require_split(resolved, resume)
    _require_effect(resolved, dict(overrides))
    is_copy = isinstance(config, Path) and not resume and config.resolve().parent.name == resolved.name
    if is_copy and "name" not in dict(overrides):
        resolved = resolved.model_copy(update={"name": None})  # the settings of a run are reused, its name is not
    return resolved, resume


def _flatten(config: RunConfig) -> list[Override]:
    pairs: list[Override] = []
    for name, value in config.model_dump(mode="json").items():
        pairs += (
            [(f"{name}.{key}", inner) for key, inner in value.items()] if isinstance(value, dict) else [(name, value)]
        )
    return pairs


def _run_to_resume(run: Path, runs_dir: Path) -> Path:
    found = next((folder for folder in (run, runs_dir / run) if (folder / "config.yaml").is_file()), None)
    if found is None:
        raise UsageError(
            f"cannot resume {run}: it has no config.yaml",
            f"give the folder of a run, or the name of a run in {runs_dir} (--runs-dir)",
        )
    return found


def _require_split(config: RunConfig, run: Path) -> None:
    split = config.data.split
    if split and not expand_user(split).is_file() and not (run / "record.json").exists():
        raise UsageError(
            f"the manifest of {run} is missing: {split}",
            f"if it was moved, run: inat-ft train --resume {run} --split FILE",
        )


def _require_effect(config: RunConfig, given: Mapping[str, Any]) -> None:
    if "optim.alpha" in given and config.optim.average != "wise-ft":
        raise UsageError("--alpha requires --average wise-ft", "add --average wise-ft, or remove --alpha")
    if "data.views" in given and config.data.views and config.data.augment != "standard":
        raise UsageError("--views requires --augment standard", "add --augment standard, or remove --views")
