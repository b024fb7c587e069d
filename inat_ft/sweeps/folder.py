"""The sweeps folder: creating, opening and listing sweeps."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from inat_ft.errors import RecordError, StorageError, UsageError
from inat_ft.records import write_text
from inat_ft.sweeps.postgres import cause_of, without_password
from inat_ft.sweeps.space import SweepSpec
from inat_ft.sweeps.storage import Storage, open_storage
from inat_ft.sweeps.study import Sweep
from inat_ft.yaml_io import dump_yaml

DEFAULT = Path("sweeps")
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def new_id() -> str:
    """Return eight characters that are easy to tell apart."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def create(
    spec: SweepSpec,
    sweeps: Path,
    id: str,
    seed: int = 0,
    storage: str | None = None,
    backend: str = "local",
    address: str | None = None,
) -> Sweep:
    """Create a sweep's folder and study. Raises UsageError if the ID is taken, StorageError if the storage fails.

    storage: address of a PostgreSQL database; address: where the backend has registered the sweep.
    """
    folder = sweeps / id
    if (folder / "sweep.json").exists():
        raise UsageError(f"the sweep {folder} exists already", f"resume it: inat-ft sweep run {id}")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        opened = open_storage(storage, folder, id)
        _silence_optuna()
        with _database_errors(opened):
            study = optuna.create_study(storage=opened.backend, study_name=id, direction=spec.metric.goal)
            about = {"seed": seed, "backend": backend, "address": address, "spec": spec.to_wandb()}
            for key, value in about.items():
                study.set_user_attr(key, value)
        write_text(folder / "sweep.yaml", dump_yaml(spec.to_wandb()))
        place = {
            "id": id,
            "storage": without_password(storage) if storage else None,
            "wandb": address if backend == "wandb" else None,
            "backend": backend,
            "address": address,
        }
        write_text(folder / "sweep.json", json.dumps(place, indent=2) + "\n")
    except BaseException as error:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, optuna.exceptions.DuplicatedStudyError):
            raise UsageError(f"the database has a sweep '{id}' already", "choose another --name") from None
        raise
    return open_sweep(id, sweeps, storage)


def open_sweep(id: str, sweeps: Path, storage: str | None = None) -> Sweep:
    """Open a sweep by its ID; one in a database needs no folder. Raises UsageError if there is none."""
    folder = sweeps / id
    about = _about(folder)
    if about is None and storage is None:
        known = ", ".join(found["id"] for found in list_sweeps(sweeps)) or "none"
        raise UsageError(f"no sweep '{id}' in {sweeps}", f"existing sweeps: {known}\ncreate one: inat-ft sweep create")
    opened = open_storage(storage or (about or {}).get("storage"), folder, id)
    _silence_optuna()
    with _database_errors(opened):
        if id not in optuna.get_all_study_names(opened.backend):
            raise UsageError(f"no sweep '{id}' in {opened.name}", "create it: inat-ft sweep create")
        study = optuna.load_study(study_name=id, storage=opened.backend, sampler=optuna.samplers.RandomSampler())
        if "spec" not in study.user_attrs:
            raise RecordError(f"creating {folder} was interrupted", "remove it and create the sweep again")
        folder.mkdir(parents=True, exist_ok=True)
        sweep = Sweep(id, folder, study, opened, _options(sweeps, storage))
    study.pruner = _pruner(sweep.spec)
    return sweep


@contextmanager
def _database_errors(storage: Storage) -> Iterator[None]:
    """Report a database that fails in one sentence."""
    try:
        yield
    except optuna.exceptions.DuplicatedStudyError:
        raise
    except storage.transient as error:
        raise StorageError(f"cannot use {storage.name}: {cause_of(error)}", "check that the server runs") from None


def _options(sweeps: Path, storage: str | None) -> str:
    """Return the options with which a command finds the sweep: those that neither defaults nor the environment give."""
    options = []
    if sweeps != DEFAULT and os.environ.get("INAT_FT_SWEEPS_DIR") != str(sweeps):
        options += ["--sweeps-dir", str(sweeps)]
    if storage and os.environ.get("INAT_FT_SWEEP_STORAGE") != storage:
        options += ["--storage", without_password(storage)]
    return shlex.join(options)


def list_sweeps(sweeps: Path) -> list[dict[str, Any]]:
    """Return the content of each sweep's sweep.json, the oldest first."""
    files = sorted(sweeps.glob("*/sweep.json"), key=lambda file: file.stat().st_mtime)
    return [about for about in map(_about, (file.parent for file in files)) if about]


def only_sweep(sweeps: Path) -> str:
    """Return the ID of the only sweep. Raises UsageError if there are several or none."""
    ids = [str(about["id"]) for about in list_sweeps(sweeps)]
    if not ids:
        raise UsageError(f"there is no sweep in {sweeps}", "create one: inat-ft sweep create")
    if len(ids) > 1:
        raise UsageError(f"{sweeps} has {len(ids)} sweeps: which one?", f"add its ID: {', '.join(ids)}")
    return ids[0]


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
