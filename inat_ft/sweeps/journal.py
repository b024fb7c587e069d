"""The journal of a sweep: an Optuna log file that survives the death of a writer in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from inat_ft.errors import RecordError
from inat_ft.locks import FileLock


class Journal(BaseJournalBackend):
    """JSON lines in a file. Readers ignore an incomplete last line; the next writer removes it.

    Optuna's own lock file outlives a killed process by 30 s; the kernel releases this one at once.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lock = FileLock(file.with_name(f"{file.name}.lock"), thread_local=False)
        if not file.exists():
            file.touch()
        self._read = (0, 0)  # number of lines read, and their bytes

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the logs from a number on. Raises RecordError naming the damaged line."""
        number, offset = self._read if self._read[0] <= log_number_from else (0, 0)
        with self.file.open("rb") as lines:
            lines.seek(offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                number, offset = number + 1, offset + len(line)
                if number > log_number_from:
                    log = self._parse(line, number)
                    self._read = (number, offset)
                    yield log

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

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            log = json.loads(line)
        except ValueError:
            log = None
        if isinstance(log, dict) and isinstance(log.get("op_code"), int) and isinstance(log.get("worker_id"), str):
            return log
        raise _damaged(self.file, f"line {number} is not a log entry")


@contextmanager
def journal_errors(file: Path) -> Iterator[None]:
    """Report a journal whose entries Optuna cannot apply as a RecordError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise _damaged(file, f"{type(error).__name__} while reading its entries") from None


def _damaged(file: Path, problem: str) -> RecordError:
    return RecordError(
        f"{file} is damaged: {problem}",
        f"restore it from a backup, or create the sweep again; finished runs stay in {file.parent / 'runs'}",
    )
