"""Where a sweep is stored, and its locks: files on one machine, a database for several."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend

from inat_ft.crash import redact
from inat_ft.errors import RecordError, StorageError
from inat_ft.locks import FileLock, Timeout
from inat_ft.registry import FEATURES, get

PATIENCE_S = 60.0  # how long an operation is retried after the connection to a database was lost
SPACE = "free some space, or choose a writable folder: --sweeps-dir"
_RETRY_S = 1.0
T = TypeVar("T")


class Locks(Protocol):
    """Locks that are released when the process of their owner ends."""

    def claim(self) -> AbstractContextManager[object]:
        """Hold the sweep's single claim, under which trials are assigned."""

    def hold(self, number: int) -> AbstractContextManager[object]:
        """Hold the lock of a running trial. Taken under the claim."""

    def is_held(self, number: int) -> bool:
        """Return whether a process works on the trial. Called under the claim."""


class FileLocks:
    """Locks on files in the sweep's folder. The kernel releases them when the process ends, whatever ends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self) -> AbstractContextManager[object]:
        return FileLock(self.folder / "claim.lock", thread_local=False)

    def hold(self, number: int) -> AbstractContextManager[object]:
        return FileLock(self.folder / f"trials/{number}.lock", thread_local=False)

    def is_held(self, number: int) -> bool:
        try:
            with FileLock(self.folder / f"trials/{number}.lock", thread_local=False, timeout=0):
                return False
        except Timeout:
            return True


class Journal(BaseJournalBackend):
    """JSON lines in a file. Readers ignore an incomplete last line; the next writer removes it.

    Optuna's own lock file outlives a killed process by 30 s; the kernel releases this one at once.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lock = FileLock(file.with_name(f"{file.name}.lock"), thread_local=False)
        self.lines_read = self._bytes_read = 0
        if not file.exists():
            file.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the logs from a number on."""
        number, offset = (self.lines_read, self._bytes_read) if self.lines_read <= log_number_from else (0, 0)
        with self.file.open("rb") as lines:
            lines.seek(offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                number, offset = number + 1, offset + len(line)
                if number > log_number_from:
                    self.lines_read, self._bytes_read = number, offset
                    yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append logs as one write, after removing an incomplete last line."""
        text = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        with self.lock, self.file.open("rb+") as journal:
            size = journal.seek(0, os.SEEK_END)
            if size and journal.seek(size - 1) >= 0 and journal.read(1) != b"\n":
                journal.seek(0)
                journal.truncate(journal.read().rfind(b"\n") + 1)
            journal.seek(0, os.SEEK_END)
            journal.write(text.encode())
            journal.flush()
            os.fsync(journal.fileno())


@dataclass(frozen=True)
class Storage:
    """The storage of one sweep, with its locks."""

    backend: BaseStorage
    locks: Locks
    name: str  # for messages: a path or an address without passwords
    transient: tuple[type[Exception], ...] = ()  # exceptions after which an operation is retried

    def retry(self, operation: Callable[[], T], patience_s: float | None = None) -> T:
        """Return the operation's result; repeat it while the database is unavailable. Raises StorageError in the end."""
        deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
        while True:
            try:
                return operation()
            except OSError as error:
                raise StorageError(f"cannot write {error.filename or self.name}: {error.strerror}", SPACE) from error
            except self.transient as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"lost the connection to {self.name}: {cause_of(error)}",
                        "finished runs are kept; when the server is up, repeat the command",
                    ) from None
                time.sleep(_RETRY_S)


def open_storage(url: str | None, folder: Path, sweep: str) -> Storage:
    """Return the storage of a sweep: files in its folder, or a PostgreSQL database. Raises UsageError or StorageError."""
    if url is not None:
        storage: Storage = get(FEATURES, "postgres").load()(url, sweep)
        return storage
    journal = Journal(folder / "journal.log")
    try:
        return Storage(JournalStorage(journal), FileLocks(folder), str(journal.file))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise RecordError(
            f"{journal.file} is damaged: line {journal.lines_read} is not a log entry ({type(error).__name__})",
            f"restore it from a backup, or create the sweep again; finished runs stay in {folder / 'runs'}",
        ) from None


def without_password(url: str) -> str:
    """Return an address for messages and files, without passwords in the login and in the query."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return f"{url.partition(':')[0]}:..." if ":" in url else url
    place, _, query = rest.partition("?") if "@" not in rest.partition("?")[2] else (rest, "", "")
    login, at, host = place.rpartition("@")
    kept = "&".join(part for part in query.split("&") if part and "password" not in part.partition("=")[0].lower())
    return f"{scheme}://{login.partition(':')[0]}{at}{host}{f'?{kept}' if kept else ''}"


def cause_of(error: BaseException) -> str:
    """Return the first line of a database error, without passwords."""
    while isinstance(inner := getattr(error, "orig", None) or error.__cause__, BaseException):
        error = inner
    lines = str(error).strip().splitlines()
    return redact(lines[0].strip()) if lines else type(error).__name__
