"""The study and the locks of a sweep in a PostgreSQL database."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from inat_ft_sweeps.storage import Storage, cause_of, without_password

from inat_ft.errors import InatFtError, StorageError, UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_CLAIM = 2**31 - 1
_PING_S = 1.0  # interval at which a held lock is checked; it also keeps the session from being closed as idle
_GRACE_S = (
    6.0  # a lock free for this long belongs to a dead worker: a live one retakes it after a restart of the server
)
_CONNECT = {"connect_timeout": 5, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}


def open_storage(url: str, sweep: str) -> Storage:
    """Return the storage of a sweep in a PostgreSQL database. Raises UsageError or StorageError if it cannot be used."""
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    full, shown, transient = driver_url(url), without_password(url), (StorageInternalError, SQLAlchemyError)
    try:
        backend = RDBStorage(full, engine_kwargs={"connect_args": _CONNECT, "poolclass": NullPool})
    except ImportError as error:
        if "psycopg" not in f"{error} {error.__cause__}":  # Optuna raises an ImportError of its own
            raise
        raise InatFtError("sweeps in PostgreSQL need its driver", "pip install 'inat-ft[postgres]'") from None
    except transient as error:
        raise StorageError(
            f"cannot use {shown}: {cause_of(error)}",
            "check that the server runs at this address, and that the password is in PGPASSWORD or ~/.pgpass",
        ) from None
    return Storage(backend, PostgresLocks(full, sweep), shown, transient)


def driver_url(url: str) -> str:
    """Return the address of a PostgreSQL database with its driver. Raises UsageError for other addresses."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, separator, rest = url.partition("://")
    problem, hint = "not a valid address", "use: postgresql://user@host:5432/database"
    if separator and scheme.partition("+")[0] in ("postgresql", "postgres"):
        with suppress(ArgumentError, ValueError):
            make_url(f"postgresql+psycopg://{rest}")
            return f"postgresql+psycopg://{rest}"
    else:
        reason = ": with SQLite, two workers can run the same trial" if scheme.startswith("sqlite") else ""
        problem = f"not the address of a PostgreSQL database{reason}"
        hint = "for one machine, omit it; for several: --storage postgresql://user@host/database"
    raise UsageError(f"--storage {without_password(url)}: {problem}", hint)


class PostgresLocks:
    """Advisory locks. The server releases them when the session of their owner ends."""

    def __init__(self, url: str, sweep: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        self.engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=_CONNECT)
        self.key = zlib.crc32(sweep.encode()) - 2**31

    @contextmanager
    def claim(self) -> Iterator[None]:
        with self.engine.connect() as session:
            session.exec_driver_sql("SELECT pg_advisory_lock(%s, %s)", (self.key, _CLAIM))
            yield

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Hold the lock of a running trial; a thread retakes it if the connection is lost."""
        session, released = self.engine.connect(), threading.Event()
        session.exec_driver_sql("SELECT pg_advisory_lock(%s, %s)", (self.key, number))
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
                if session.closed:
                    session = self.engine.connect()
                    query = "SELECT pg_try_advisory_lock(%s, %s)"
                    if not session.exec_driver_sql(query, (self.key, number)).scalar():
                        session.close()
                else:
                    session.exec_driver_sql("SELECT 1")
            except SQLAlchemyError:
                session.close()
        session.close()

    def is_held(self, number: int) -> bool:
        """Return whether a process works on the trial. It takes some seconds if none does."""
        query = (
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid::bigint = %s AND "
            "objid::bigint = %s AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        deadline = time.monotonic() + _GRACE_S
        while True:
            with self.engine.connect() as session:
                if session.exec_driver_sql(query, (self.key % 2**32, number)).scalar():
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_PING_S / 2)
