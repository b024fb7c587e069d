"""Where a sweep is stored, and its locks: files on one machine, PostgreSQL for several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from optuna.storages import BaseStorage, JournalStorage

from inat_ft.errors import StorageError
from inat_ft.locks import FileLock, Timeout
from inat_ft.sweeps.journal import Journal, journal_errors

PATIENCE_S = 60.0
"""How long an operation is retried after the connection to a database was lost."""
_RETRY_S = 1.0
T = TypeVar("T")


class Locks(Protocol):
    """Locks that are released when the process that holds them ends, whatever ends it."""

    def claim(self) -> AbstractContextManager[None]:
        """Hold the sweep's single claim, under which trials are assigned."""

    def hold(self, number: int) -> AbstractContextManager[None]:
        """Hold the lock of a running trial. Taken under the claim."""

    def is_held(self, number: int) -> bool:
        """Return whether a process works on the trial. Called under the claim."""


class FileLocks:
    """Locks on files in the sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, number: int) -> FileLock:
        (self.folder / "trials").mkdir(exist_ok=True)
        return FileLock(self.folder / f"trials/{number}.lock", thread_local=False)

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the lock on claim.lock."""
        with FileLock(self.folder / "claim.lock", thread_local=False):
            yield

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Hold the lock of a running trial."""
        with self._file(number):
            yield

    def is_held(self, number: int) -> bool:
        """Return whether a process works on the trial."""
        lock = self._file(number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


@dataclass(frozen=True)
class Storage:
    """The storage of one sweep, with its locks."""

    backend: BaseStorage
    locks: Locks
    name: str
    """For messages: a path or an address without passwords."""
    transient: tuple[type[Exception], ...] = ()
    """Exceptions after which an operation is retried."""

    def retry(self, operation: Callable[[], T], patience_s: float | None = None) -> T:
        """Return the operation's result; repeat it while the database is unavailable. Raises StorageError in the end."""
        deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
        while True:
            try:
                return operation()
            except self.transient as error:
                if time.monotonic() > deadline:
                    from inat_ft.sweeps.postgres import cause_of

                    raise StorageError(
                        f"lost the connection to {self.name}: {cause_of(error)}",
                        "finished runs are kept; when the server is up, repeat the command",
                    ) from None
                time.sleep(_RETRY_S)


def open_storage(url: str | None, folder: Path, sweep: str) -> Storage:
    """Return the storage of a sweep. Raises UsageError or StorageError for one that cannot be used."""
    if url is None:
        file = folder / "journal.log"
        with journal_errors(file):
            return Storage(JournalStorage(Journal(file)), FileLocks(folder), str(file))
    from inat_ft.sweeps.postgres import PostgresLocks, connection_errors, driver_url, open_postgres, without_password

    backend = open_postgres(url)
    return Storage(backend, PostgresLocks(driver_url(url), sweep), without_password(url), connection_errors())
