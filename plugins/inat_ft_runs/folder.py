"""The runs in a folder, complete or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from inat_ft.errors import BusyError, InatFtError, StorageError, UsageError, did_you_mean
from inat_ft.locks import FileLock, Timeout
from inat_ft.paths import is_cross_validation
from inat_ft.records import Epoch, RunRecord, read_record
from inat_ft.settings import read_yaml

_DELETED = ".deleted-"


@dataclass(frozen=True)
class RunEntry:
    """A run directory. state: complete, running, interrupted, failed or damaged; record: None unless complete."""

    name: str
    directory: Path
    state: str
    config: dict[str, Any]
    history: Sequence[Epoch]
    created: str | None
    record: RunRecord | None = None
    problem: str = ""
    """Why the record cannot be read."""

    @property
    def best(self) -> Epoch | None:
        """The best epoch: of an unfinished run, the one with the highest validation accuracy so far."""
        if self.record and self.record.best_epoch and self.history:
            return next((epoch for epoch in self.history if epoch.epoch == self.record.best_epoch), None)
        return max(self.history, key=lambda epoch: epoch.val_accuracy or 0.0, default=None)

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy of the best epoch."""
        if self.record and self.record.val_accuracy is not None:
            return self.record.val_accuracy
        return self.best.val_accuracy if self.best else None

    @property
    def seconds(self) -> float | None:
        """Training time in seconds."""
        if self.record:
            return self.record.seconds.get("total")
        return sum(epoch.seconds or 0.0 for epoch in self.history) or None

    def setting(self, key: str) -> Any:
        """Return the value of a dotted configuration key, or None."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_runs(folder: Path) -> list[RunEntry]:
    """Return the runs in a folder, the newest first. Raises UsageError if the folder does not exist."""
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}", "train a run first: inat-ft train; or give another --runs-dir")
    runs = [read_run(each) for each in sorted(folder.iterdir()) if _is_run(each)]
    return sorted(runs, key=lambda run: run.created or "", reverse=True)


def _is_run(directory: Path) -> bool:
    files = ("record.json", "config.yaml")
    return (
        not directory.name.startswith(".")
        and not is_cross_validation(directory)
        and any((directory / name).is_file() for name in files)
    )


def read_run(directory: Path) -> RunEntry:
    """Return the run in a directory."""
    name, problem, state = directory.name, "", _state(directory)
    if state == "complete":
        try:
            record = read_record(directory)[0]
            return RunEntry(name, directory, state, record.config, record.history, record.created, record)
        except InatFtError as error:
            state, problem = "damaged", error.message
    try:
        config = read_yaml(directory / "config.yaml")
    except InatFtError as error:
        config, problem = {}, problem or error.message
    file = next(directory / each for each in ("config.yaml", "record.json") if (directory / each).exists())
    created = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return RunEntry(name, directory, state, config, list(_epochs(directory)), created, None, problem)


def _state(directory: Path) -> str:
    if (directory / "record.json").exists():
        return "complete"
    if is_running(directory):
        return "running"
    return "failed" if (directory / "crash.txt").exists() else "interrupted"


def is_running(directory: Path) -> bool:
    """Return whether a process is training the run."""
    if not (directory / ".lock").exists():
        return False
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (InatFtError, OSError):  # no locks here, or a read-only folder: unknown
        return False
    lock.release()
    return False


def _epochs(directory: Path) -> Iterator[Epoch]:
    """Yield the epochs of an unfinished run."""
    file = directory / "metrics.jsonl"
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            yield Epoch.model_validate(json.loads(line))
        except (ValueError, RecursionError):
            return


def find_run(given: str, folder: Path) -> Path:
    """Return the directory of a run, given by its name or its path. Raises UsageError if there is none."""
    for directory in (folder / given, Path(given)):
        for each in (directory, directory.parent) if directory.name == "record.json" else (directory,):
            if _is_run(each):
                return each
        if is_cross_validation(directory):
            raise UsageError(
                f"{directory} is a cross-validation, not a single run",
                f"list the runs of its folds: inat-ft runs --runs-dir {directory}",
            )
    known = [each.name for each in folder.iterdir() if _is_run(each)] if folder.is_dir() else []
    raise UsageError(f"no such run: {given}{did_you_mean(given, known)}", f"list the runs in {folder}: inat-ft runs")


def find_deletable(given: str, folder: Path) -> Path:
    """Return the directory of a run that may be deleted.

    Raises UsageError if it is not directly inside the folder, BusyError if a process is training it.
    """
    directory = find_run(given, folder)
    if directory.is_symlink() or directory.resolve().parent != folder.resolve():
        raise UsageError(
            f"{given} is not a run in {folder}: only runs directly inside this folder can be deleted",
            "give the folder of the run as --runs-dir",
        )
    if is_running(directory):
        raise _busy(directory)
    return directory


def _busy(directory: Path) -> BusyError:
    return BusyError(f"another process is training {directory}", "stop it first, or wait until it has finished")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of deleted runs."""
    for left in folder.glob(f"{_DELETED}*"):
        shutil.rmtree(left, ignore_errors=True)


def delete_run(directory: Path) -> None:
    """Delete a run. Raises BusyError if a process is training it, StorageError if a file cannot be removed."""
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _busy(directory) from None
    try:
        doomed = directory.with_name(f"{_DELETED}{directory.name}-{uuid4().hex[:8]}")
        try:
            directory.rename(doomed)  # from here on, no other process finds an incomplete run
        except PermissionError:  # Windows does not rename a folder that has an open file, such as the lock
            lock.release()
            directory.rename(doomed)
    except OSError as error:
        raise StorageError(f"cannot delete {directory}: {error.strerror}", "check who owns the folder") from error
    finally:
        lock.release()
    try:
        shutil.rmtree(doomed)
    except FileNotFoundError:  # another process removes leftovers
        shutil.rmtree(doomed, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot delete all of {doomed}: {error.strerror}", "delete the rest by hand") from error


def num_bytes(directory: Path) -> int:
    """Return the size of the files in a directory."""
    return sum(file.lstat().st_size for file in directory.rglob("*") if not file.is_dir() or file.is_symlink())
