"""Where a sweep is kept, and the locks that tell who works on what: files on one machine, PostgreSQL for many."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from inat_ft.errors import InatFtError, UsageError
from inat_ft.locks import FileLock, Timeout

_CLAIM = -1


class Locks(Protocol):
    """Locks that vanish with the process that holds them, however it ends: no timers, no stale locks."""

    def claim(self) -> AbstractContextManager[None]:
        """Wait for the sweep's one claim, under which trials are given out."""

    def hold(self, number: int) -> AbstractContextManager[None]:
        """Hold the lock of a running trial. Taken under the claim."""

    def is_held(self, number: int) -> bool:
        """Whether a process is working on the trial. Asked under the claim."""


class FileLocks:
    """Locks on files in the sweep's folder, which the kernel drops when their process ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, number: int) -> FileLock:
        name = "claim.lock" if number == _CLAIM else f"trials/{number}.lock"
        return FileLock(self.folder / name, thread_local=False)

    @contextmanager
    def claim(self) -> Iterator[None]:
        with self._file(_CLAIM):
            yield

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        (self.folder / "trials").mkdir(exist_ok=True)
        with self._file(number):
            yield

    def is_held(self, number: int) -> bool:
        if not (self.folder / "trials").is_dir():
            return False
        lock = self._file(number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


class PostgresLocks:
    """Advisory locks of database sessions: the server drops them when the connection ends, from whatever machine."""

    def __init__(self, url: str, sweep: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        alive = {"keepalives": 1, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
        self.engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=alive)
        self.key = zlib.crc32(sweep.encode()) - 2**31

    @contextmanager
    def _locked(self, number: int) -> Iterator[None]:
        with self.engine.connect() as session:
            self._ask(session, "pg_advisory_lock", number)
            yield

    def claim(self) -> AbstractContextManager[None]:
        return self._locked(_CLAIM)

    def hold(self, number: int) -> AbstractContextManager[None]:
        return self._locked(number)

    def is_held(self, number: int) -> bool:
        with self.engine.connect() as session:
            return not self._ask(session, "pg_try_advisory_lock", number)

    def _ask(self, session: Any, function: str, number: int) -> Any:
        from sqlalchemy import text

        return session.execute(text(f"SELECT {function}(:key, :number)"), {"key": self.key, "number": number}).scalar()


class _KernelLock(BaseJournalFileLock):
    """Optuna's own lock outlives a killed process by 30 s; the kernel's does not."""

    def __init__(self, file: Path) -> None:
        self.lock = FileLock(file, thread_local=False)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


class _Journal(JournalFileBackend):
    """A journal that survives the death of a writer in the middle of a line."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file), _KernelLock(file.with_name(f"{file.name}.lock")))
        self.file, self.lock = file, _KernelLock(file.with_name("repair.lock"))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.lock.acquire()
        try:
            self._cut_half_line()
            super().append_logs(logs)
        finally:
            self.lock.release()

    def _cut_half_line(self) -> None:
        with self.file.open("rb+") as journal:
            size = journal.seek(0, 2)
            if size and journal.seek(size - 1) >= 0 and journal.read(1) != b"\n":
                journal.seek(0)
                journal.truncate(journal.read().rfind(b"\n") + 1)


def open_storage(url: str | None, folder: Path, sweep: str) -> tuple[BaseStorage, Locks]:
    """The storage of a sweep and its locks. Raises UsageError for a kind of storage that does not work."""
    if url is None:
        return JournalStorage(_Journal(folder / "journal.log")), FileLocks(folder)
    return _postgres(url), PostgresLocks(driver_url(url), sweep)


def driver_url(url: str) -> str:
    """The address of a PostgreSQL database with the driver named. Raises UsageError for another kind of database."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme.partition("+")[0] in ("postgresql", "postgres"):
        return f"postgresql+psycopg://{rest}"
    why = ": SQLite lets two workers run the same trial" if scheme.startswith("sqlite") else ""
    raise UsageError(
        f"--storage {without_password(url)}: not an address of a PostgreSQL database{why}",
        "leave it out for one machine, or: --storage postgresql://user@host/database",
    )


def without_password(url: str) -> str:
    """Return the address as it may be written to a file or shown: without passwords in the login and in the query."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return f"{url.partition(':')[0]}:..." if ":" in url else url
    place, question, query = rest.partition("?") if "@" not in rest.partition("?")[2] else (rest, "", "")
    login, at, host = place.rpartition("@")
    kept = [part for part in query.split("&") if part and "password" not in part.partition("=")[0].lower()]
    return f"{scheme}://{login.partition(':')[0]}{at}{host}{question if kept else ''}{'&'.join(kept)}"


def _postgres(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    full = driver_url(url)
    try:
        return RDBStorage(full, engine_kwargs={"connect_args": {"connect_timeout": 5}, "poolclass": NullPool})
    except ImportError as error:
        if "psycopg" not in str(error):
            raise
        raise InatFtError("sweeps in PostgreSQL need its driver", "pip install 'inat-ft[postgres]'") from None
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise InatFtError(
            f"cannot use {without_password(url)}: {cause}",
            "is the server up, and the password in PGPASSWORD or ~/.pgpass?",
        ) from None
