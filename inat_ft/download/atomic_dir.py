"""Folders that are there whole or not at all, made by one process at a time."""

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
    """Keep other processes from making `target`, a file or folder; its parent folder is made.

    A parent that was made here is removed again when the block fails and has left nothing in it. on_wait is called when
    another process holds the lock. Raises UsageError when the parent is a file, DataError when it cannot be written.
    """
    made = [parent for parent in target.parents if not os.path.lexists(parent)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            on_wait()
            lock.acquire()
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{target.parent} is not a folder", "name a folder") from None
    except OSError as error:
        raise DataError(f"cannot write to {target.parent}: {error.strerror or error}", "name another folder") from error
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise
    finally:
        lock.release()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, as long as they contain nothing but locks."""
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
    """An empty folder beside `target` that becomes it when the block ends well, and is gone when it does not.

    Call it under `locked(target)`: what a killed process left is cleared away first. Raises DataError when `target`
    exists and is not an empty folder, and OSError when the disk will not take it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} exists already", "remove it, or name another place with --to")
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
