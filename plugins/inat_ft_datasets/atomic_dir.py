"""Folders that exist completely or not at all, written by one process at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from inat_ft.errors import DataError, UsageError
from inat_ft.locks import FileLock, Timeout


@contextmanager
def file_lock(target: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other processes from writing `target`, a file or folder, and create its parent folder.

    If the block fails, a parent that was created here is removed if it is empty. on_wait is called if another process holds
    the lock. Raises UsageError if the parent is a file, DataError if it cannot be written.
    """
    created = [parent for parent in target.parents if not os.path.lexists(parent)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            on_wait()
            lock.acquire()
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{target.parent} is not a folder", "choose a folder") from None
    except OSError as error:
        hint = "choose another folder, or check its permissions"
        raise DataError(f"cannot write to {target.parent}: {error.strerror or error}", hint) from error
    try:
        yield
    except BaseException:
        _remove_empty(created)
        raise
    finally:
        lock.release()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, until one contains more than lock files."""
    with suppress(OSError):
        for folder in folders:
            entries = list(folder.iterdir())
            if not all(entry.name.startswith(".") and entry.name.endswith(".lock") for entry in entries):
                return
            for entry in entries:
                entry.unlink()
            folder.rmdir()


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `target` after the block, or removed if the block fails.

    Call it under `file_lock(target)`. Raises DataError if `target` exists and is not an empty folder, and OSError if the
    folder cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} already exists", "remove it, or choose another place with --to")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
        if target.exists():
            target.rmdir()
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
