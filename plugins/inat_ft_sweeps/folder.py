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
from inat_ft.paths import check_name
from inat_ft.records import write_text
from inat_ft.registry import call_plugin
from inat_ft.yaml_io import dump_yaml
from inat_ft_sweeps.base import load_backend
from inat_ft_sweeps.parsing import check_models, require_split
from inat_ft_sweeps.space import SweepSpec
from inat_ft_sweeps.storage import SPACE, Storage, cause_of, open_storage, without_password
from inat_ft_sweeps.study import Sweep

DEFAULT = Path("sweeps")


def create_checked(
    spec: SweepSpec,
    sweeps: Path,
    name: str | None = None,
    seed: int = 0,
    storage: str | None = None,
    backend: str = "local",
    project: str | None = None,
    entity: str | None = None,
) -> Sweep:
    """Check the networks and the split of a sweep, register it at its backend, and create it.

    name: ID of the sweep; by default eight characters that are hard to confuse.
    """
    scheduler = load_backend(backend)
    check_models(spec)
    if scheduler.schedules_here:
        require_split(spec)
    address = call_plugin(scheduler.create, spec, project or spec.project, entity or spec.entity)
    random = "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(8))
    id = name or (address.rsplit("/", 1)[-1] if address else random)
    return create(spec, sweeps, id, seed, storage, backend, address)


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
    check_name(id)
    folder = sweeps / id
    if (folder / "sweep.json").exists():
        raise UsageError(f"the sweep {folder} exists already", f"resume it: inat-ft sweep run {id}")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(storage, folder, id) as opened:
            study = optuna.create_study(storage=opened.backend, study_name=id, direction=spec.metric.goal)
            about = {"seed": seed, "backend": backend, "address": address, "spec": spec.to_wandb()}
            for key, value in about.items():
                study.set_user_attr(key, value)
        write_text(folder / "sweep.yaml", dump_yaml(spec.to_wandb()))
        server, wandb = without_password(storage) if storage else None, address if backend == "wandb" else None
        place = {"id": id, "storage": server, "wandb": wandb, "backend": backend, "address": address}
        write_text(folder / "sweep.json", json.dumps(place, indent=2) + "\n")
    except BaseException as error:
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
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
    options = []  # with which a command finds the sweep: those that neither defaults nor the environment give
    if sweeps != DEFAULT and os.environ.get("INAT_FT_SWEEPS_DIR") != str(sweeps):
        options += ["--sweeps-dir", str(sweeps)]
    if storage and os.environ.get("INAT_FT_SWEEP_STORAGE") != storage:
        options += ["--storage", without_password(storage)]
    with _opened(storage or (about or {}).get("storage"), folder, id) as opened:
        if id not in optuna.get_all_study_names(opened.backend):
            raise UsageError(f"no sweep '{id}' in {opened.name}", "create it: inat-ft sweep create")
        study = optuna.load_study(study_name=id, storage=opened.backend, sampler=optuna.samplers.RandomSampler())
        if "spec" not in study.user_attrs:
            raise RecordError(f"creating {folder} was interrupted", "remove it and create the sweep again")
        folder.mkdir(parents=True, exist_ok=True)
        sweep = Sweep(id, folder, study, opened, shlex.join(options))
    study.pruner = optuna.pruners.NopPruner()
    if early := sweep.spec.early_terminate:
        study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=early.first, reduction_factor=early.eta)
    return sweep


@contextmanager
def _opened(url: str | None, folder: Path, id: str) -> Iterator[Storage]:
    """Open the storage of a sweep; report a database that fails inside the block in one sentence."""
    storage = open_storage(url, folder, id)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield storage
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or storage.name}: {error.strerror}", SPACE) from error
    except storage.transient as error:
        raise StorageError(f"cannot use {storage.name}: {cause_of(error)}", "check that the server runs") from None


def list_sweeps(sweeps: Path) -> list[dict[str, Any]]:
    files = sorted(sweeps.glob("*/sweep.json"), key=lambda file: file.stat().st_mtime)
    return [about for about in map(_about, (file.parent for file in files)) if about]


def only_sweep(sweeps: Path) -> str:
    """Return the ID of the only sweep. Raises UsageError if there are several or none."""
    ids = [str(about["id"]) for about in list_sweeps(sweeps)]
    if not ids:
        raise UsageError(f"no sweeps in {sweeps}", "create one: inat-ft sweep create")
    if len(ids) > 1:
        raise UsageError(f"{sweeps} has {len(ids)} sweeps: which one?", f"add its ID: {', '.join(ids)}")
    return ids[0]


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        loaded = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) and loaded.get("id") == folder.name else None
