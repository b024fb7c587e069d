"""The folder of sweeps: made, found by id, listed."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import optuna

from inat_ft.errors import RecordError, UsageError
from inat_ft.records import write_text
from inat_ft.sweeps.space import SweepSpec
from inat_ft.sweeps.storage import open_storage, without_password
from inat_ft.sweeps.study import Sweep
from inat_ft.yaml_io import dump_yaml

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def new_id() -> str:
    """Eight characters that cannot be mistaken for one another."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def create(
    spec: SweepSpec, sweeps: Path, id: str, seed: int = 0, storage: str | None = None, wandb: str | None = None
) -> Sweep:
    """Make a sweep's folder and study. Raises UsageError when the id is taken or the storage does not work."""
    folder = sweeps / id
    if (folder / "sweep.json").exists():
        raise UsageError(f"the sweep {folder} exists already", f"go on with it: inat-ft sweep run {id}")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _make_study(spec, folder, id, seed, storage, wandb)
    except BaseException:
        if new:  # nothing half-made stays behind
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return open_sweep(id, sweeps, storage)


def _make_study(spec: SweepSpec, folder: Path, id: str, seed: int, storage: str | None, wandb: str | None) -> None:
    backend, _ = open_storage(storage, folder, id)
    _silence_optuna()
    try:
        study = optuna.create_study(storage=backend, study_name=id, direction=spec.metric.goal)
    except optuna.exceptions.DuplicatedStudyError:
        raise UsageError(f"the database has a sweep '{id}' already", "choose another --name") from None
    for key, value in {"seed": seed, "wandb": wandb, "spec": spec.to_wandb()}.items():
        study.set_user_attr(key, value)
    write_text(folder / "sweep.yaml", dump_yaml(spec.to_wandb()))
    about = {"id": id, "storage": without_password(storage) if storage else None, "wandb": wandb}
    write_text(folder / "sweep.json", json.dumps(about, indent=2) + "\n")


def open_sweep(id: str, sweeps: Path, storage: str | None = None) -> Sweep:
    """A sweep by its id; one in a database needs no folder. Raises UsageError when there is none."""
    folder = sweeps / id
    about = _about(folder)
    if about is None and storage is None:
        known = ", ".join(found["id"] for found in list_sweeps(sweeps)) or "none"
        raise UsageError(f"no sweep '{id}' in {sweeps}", f"there are: {known}\nmake one: inat-ft sweep create")
    backend, locks = open_storage(storage or (about or {}).get("storage"), folder, id)
    _silence_optuna()
    try:
        study = optuna.load_study(study_name=id, storage=backend)
    except KeyError:
        raise UsageError(f"the database has no sweep '{id}'") from None
    if "spec" not in study.user_attrs:
        raise RecordError(f"{folder} was never finished: creating it was interrupted", "remove it and create it anew")
    folder.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(id, folder, study, locks)
    study.pruner = _pruner(sweep.spec)
    return sweep


def list_sweeps(sweeps: Path) -> list[dict[str, Any]]:
    """What stands in each sweep's sweep.json, the oldest first."""
    files = sorted(sweeps.glob("*/sweep.json"), key=lambda file: file.stat().st_mtime)
    return [about for about in map(_about, (file.parent for file in files)) if about]


def only_sweep(sweeps: Path) -> str:
    """The id of the only sweep. Raises UsageError when there are several or none."""
    ids = [about["id"] for about in list_sweeps(sweeps)]
    if len(ids) == 1:
        return str(ids[0])
    if not ids:
        raise UsageError(f"there is no sweep in {sweeps}", "make one: inat-ft sweep create")
    raise UsageError(f"which of the {len(ids)} sweeps? name its ID", f"there are: {', '.join(ids)}")


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        loaded = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) and "id" in loaded else None


def _pruner(spec: SweepSpec) -> optuna.pruners.BasePruner:
    early = spec.early_terminate
    if early is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=early.first, reduction_factor=early.eta)


def _silence_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
