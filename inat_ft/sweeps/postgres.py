"""Sweeps in PostgreSQL, for workers on several machines: its address, its storage, and locks that survive a restart."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage

from inat_ft.crash import redact
from inat_ft.errors import InatFtError, StorageError, UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_CLAIM = 2**31 - 1
_PING_S = 1.0
"""Interval at which a held lock is checked; it also keeps the session from being closed as idle."""
_GRACE_S = 6.0
"""A lock that is free for this long belongs to a dead worker: a live one retakes it after a restart of the server."""
_CONNECT = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


class PostgresLocks:
    """Advisory locks. The server releases them when the session of their owner ends."""

    def __init__(self, url: str, sweep: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        self.engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=_CONNECT)
        self.key = zlib.crc32(sweep.encode()) - 2**31

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the sweep's single claim, under which trials are assigned."""
        with self._lock(_CLAIM):
            yield

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Hold the lock of a running trial; a thread retakes it if the connection is lost."""
        session, released = self._lock(number), threading.Event()
        keeper = threading.Thread(target=self._keep, args=(session, number, released), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            released.set()
            keeper.join()

    def _keep(self, session: Connection, number: int, released: threading.Event) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        while not released.wait(_PING_S):
            try:
                if not session.closed:
                    self._query(session, "SELECT 1")
                    continue
                session = self.engine.connect()
                if self._query(session, "SELECT pg_try_advisory_lock(:key, :number)", key=self.key, number=number):
                    continue
            except SQLAlchemyError:
                pass
            _close(session)
        _close(session)

    def is_held(self, number: int) -> bool:
        """Return whether a process works on the trial. It takes some seconds if none does."""
        query = (
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid::bigint = :key "
            "AND objid::bigint = :number AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        deadline = time.monotonic() + _GRACE_S
        while True:
            with self.engine.connect() as session:
                if self._query(session, query, key=self.key % 2**32, number=number):
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_PING_S / 2)

    def _lock(self, number: int) -> Connection:
        session = self.engine.connect()
        self._query(session, "SELECT pg_advisory_lock(:key, :number)", key=self.key, number=number)
        return session

    @staticmethod
    def _query(session: Connection, query: str, **values: int) -> Any:
        from sqlalchemy import text

        return session.execute(text(query), values).scalar()


def _close(session: Connection) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    with suppress(SQLAlchemyError):
        session.invalidate()
    with suppress(SQLAlchemyError):
        session.close()


def driver_url(url: str) -> str:
    """Return the address of a PostgreSQL database with its driver. Raises UsageError for other addresses."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        reason = ": with SQLite, two workers can run the same trial" if scheme.startswith("sqlite") else ""
        raise UsageError(
            f"--storage {without_password(url)}: not the address of a PostgreSQL database{reason}",
            "for one machine, omit it; for several: --storage postgresql://user@host/database",
        )
    try:
        make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError):
        raise UsageError(
            f"--storage {without_password(url)}: not a valid address", "use: postgresql://user@host:5432/database"
        ) from None
    return f"postgresql+psycopg://{rest}"


def without_password(url: str) -> str:
    """Return an address for messages and files, without passwords in the login and in the query."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return f"{url.partition(':')[0]}:..." if ":" in url else url
    place, question, query = rest.partition("?") if "@" not in rest.partition("?")[2] else (rest, "", "")
    login, at, host = place.rpartition("@")
    kept = [part for part in query.split("&") if part and "password" not in part.partition("=")[0].lower()]
    return f"{scheme}://{login.partition(':')[0]}{at}{host}{question if kept else ''}{'&'.join(kept)}"


def connection_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a lost or refused connection."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError


def cause_of(error: BaseException) -> str:
    """Return the first line of a database error, without passwords."""
    while isinstance(inner := getattr(error, "orig", None) or error.__cause__, BaseException):
        error = inner
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(lines[0].strip()) if lines else type(error).__name__


def open_postgres(url: str) -> BaseStorage:
    """Return the storage. Raises StorageError if the server cannot be used, InatFtError without its driver."""
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import NullPool

    full = driver_url(url)
    try:
        return RDBStorage(full, engine_kwargs={"connect_args": _CONNECT, "poolclass": NullPool})
    except ImportError as error:
        if "psycopg" not in str(error):
            raise
        raise InatFtError("sweeps in PostgreSQL need its driver", "pip install 'inat-ft[postgres]'") from None
    except connection_errors() as error:
        raise StorageError(
            f"cannot use {without_password(url)}: {cause_of(error)}",
            "check that the server runs at this address, and that the password is in PGPASSWORD or ~/.pgpass",
        ) from None
