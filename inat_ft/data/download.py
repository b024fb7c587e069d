"""Downloads that go on after an interruption and never leave half a file under the final name."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from inat_ft import __version__
from inat_ft.errors import DataError, UsageError
from inat_ft.records import write_text

Tick = Callable[[int, int], None]

_BLOCK = 2**20
_TRIES_WITHOUT_PROGRESS = 4
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


class _Interrupted(Exception):
    """The transfer broke off; what has arrived is kept."""


@dataclass
class _Download:
    url: str
    target: Path
    timeout_s: float
    tick: Tick
    pause_s: float
    said: dict[str, str] = field(default_factory=dict)

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def notes(self) -> Path:
        """What the server said of the version that the part belongs to."""
        return self.target.with_name(f"{self.target.name}.part.json")

    def run(self) -> None:
        """Fetch the rest of the file, trying again as long as something arrives."""
        failures, most = 0, self._arrived()
        while True:
            try:
                self._transfer(self._arrived())
                return
            except _Interrupted as interruption:
                failures = 1 if self._arrived() > most else failures + 1
                most = max(most, self._arrived())
                if failures >= _TRIES_WITHOUT_PROGRESS:
                    raise DataError(
                        f"cannot fetch {self.url}: {interruption}",
                        "check the network and try again; what has arrived is kept and the rest is fetched then",
                    ) from None
                time.sleep(self.pause_s * 2**failures)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self, start: int) -> None:
        headers = {"User-Agent": f"inat-ft/{__version__}", "Accept-Encoding": "identity"}
        version = self._known_version()
        if start and version:  # without a version, two different files might be joined
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url, headers=headers), timeout=self.timeout_s
            ) as answer:
                self._receive(answer, start)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the part is as long as the file, or the file has become shorter
                self._start_again()
            if error.code in (*_RETRIED, 416):
                raise _Interrupted(f"the server answered {error.code} {error.reason}") from None
            raise DataError(f"cannot fetch {self.url}: the server answered {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, socket.gaierror):  # no such host, or no network at all: waiting does not help
                raise DataError(
                    f"cannot fetch {self.url}: no network, or no such host ({error.reason.strerror})"
                ) from None
            raise _Interrupted(f"no connection ({error.reason})") from None
        except (TimeoutError, http.client.HTTPException, ConnectionError) as error:
            raise _Interrupted(f"the connection broke off ({error or type(error).__name__})") from None

    def _receive(self, answer: http.client.HTTPResponse, start: int) -> None:
        if answer.status != 206:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            self._start_again()
            raise _Interrupted("the server sent another part than asked for")
        length = int(answer.headers.get("Content-Length") or -1)
        total = start + length if length >= 0 else -1
        self._note(answer)
        try:
            with self.part.open("r+b" if start else "wb") as file:
                file.seek(start)
                file.truncate()
                done = start
                while block := answer.read1(_BLOCK):
                    file.write(block)
                    done += len(block)
                    self.tick(done, max(total, done))
                file.flush()
                os.fsync(file.fileno())
        except (TimeoutError, ConnectionError, http.client.HTTPException):
            raise
        except OSError as error:
            raise DataError(
                f"cannot write {self.part}: {error.strerror or error}",
                "free some space and run the command again; what has arrived is kept",
            ) from error
        if total >= 0 and done != total:
            raise _Interrupted(f"only {done:,} of {total:,} bytes arrived")

    def _known_version(self) -> str | None:
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            return str(notes["version"]) if notes["url"] == self.url and notes["version"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _note(self, answer: http.client.HTTPResponse) -> None:
        tag = answer.headers.get("ETag") or ""
        version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified") or ""
        write_text(self.notes, json.dumps({"url": self.url, "version": version}))

    def _start_again(self) -> None:
        self.part.unlink(missing_ok=True)


def download(
    url: str,
    to: Path,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    size: int | None = None,
    tick: Tick = lambda done, total: None,
    timeout_s: float = 15.0,
    pause_s: float = 0.5,
) -> Path:
    """Fetch a URL into the file `to`; nothing happens when it is there already, with the right hash and size.

    sha256 (or the first digits of it) and size in bytes are checked when given. An interrupted download is kept beside the
    target and goes on next time, if the server still has the same version. timeout_s: of one read; pause_s: before the
    first retry, doubled each time. Raises DataError saying what went wrong, within seconds when there is no network.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url} is no http or https address")
    wanted = (sha256 or sha256_prefix or "").lower()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {to.parent}: {error.strerror}") from error
    with FileLock(to.with_name(f".{to.name}.lock")):
        if to.exists() and _problem(to, wanted, size) is None:
            return to
        task = _Download(url, to, timeout_s, tick, pause_s)
        task.run()
        problem = _problem(task.part, wanted, size)
        task.notes.unlink(missing_ok=True)
        if problem:
            task.part.unlink()
            raise DataError(
                f"what {url} sent is not the file that was expected: {problem}", "try again, or use another mirror"
            )
        shutil.move(task.part, to)
    return to


def _problem(file: Path, sha256: str, size: int | None) -> str | None:
    found = file.stat().st_size
    if size is not None and found != size:
        return f"{found:,} bytes instead of {size:,}"
    if sha256:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if not digest.startswith(sha256):
            return f"its SHA-256 begins with {digest[: max(8, len(sha256))]} instead of {sha256}"
    return None
