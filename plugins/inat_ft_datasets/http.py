"""Download a file over HTTP, resuming after an interruption. The final name never holds a partial file."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from inat_ft import __version__
from inat_ft.crash import redact
from inat_ft.errors import DataError, InatFtError, UsageError
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.records import write_text
from inat_ft_datasets.atomic_dir import file_lock

_BLOCK = 2**20
_TRIES_WITHOUT_PROGRESS = 4
_TRIES = 1000
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_RANGE_NOT_SATISFIABLE = 416
_PART_HINT = "the received part is kept; the next attempt requests only the rest, if the server supports it"
_ADDRESS_HINT = "check the address, or use another mirror"


class _Interrupted(Exception):
    """The transfer broke off; the received part is kept."""


@dataclass(frozen=True)
class _Version:
    """What identifies a version of a file on a server, so that parts of two versions are never joined."""

    url: str
    tag: str = ""
    modified: str = ""
    total: int = -1
    """Bytes of the whole file, -1 if unknown."""

    @property
    def condition(self) -> str:
        """The value of If-Range, which does not allow weak tags (RFC 9110, 13.1.5)."""
        return self.tag if self.tag and not self.tag.startswith("W/") else self.modified

    def contradicts(self, other: _Version) -> bool:
        """Return whether a value that both have differs; a partial response can have fewer values than a whole one."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return any(mine != theirs for mine, theirs in pairs if mine not in ("", -1) and theirs not in ("", -1))


def download(
    url: str,
    to: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: ProgressFn = ignore_progress,
    timeout_s: float = 15.0,
    pause_s: float = 0.5,
) -> Path:
    """Download a URL to the file `to`, unless the file exists with the right hash and size.

    sha256 (or its first digits) and size in bytes are checked if given. An interrupted download is kept beside the target, as
    `.part`; the next one resumes it if the server still has the same version (by ETag, else Last-Modified, else length).
    progress is called with (done, total) in bytes. timeout_s: of one read; pause_s: before the first retry, doubled for each
    further one. Raises DataError if the download fails, and UsageError for an address or a hash that is not valid.
    """
    require_request(url, sha256)
    wanted = (sha256 or "").lower()
    if to.is_dir():
        raise UsageError(f"{to} is a folder, not a file to download to", "choose a file name")
    if _is_complete(to, wanted, size):  # checked before locking, because the folder may be read-only
        return to
    with file_lock(to):
        if _is_complete(to, wanted, size):
            return to
        task = _Download(url, to, size, bool(wanted or size is not None), timeout_s, pause_s, progress)
        resumed = task.part.exists()
        task.run()
        if resumed and _problem(task.part, wanted, size):  # the part of an earlier run may be the wrong one
            task.discard()
            task.run()
        if problem := _problem(task.part, wanted, size):
            task.discard()
            raise DataError(f"{redact(url)} is not the expected file: {problem}", "use another mirror")
        task.part.replace(to)
        task.notes.unlink(missing_ok=True)
    return to


def require_request(url: str, sha256: str | None) -> None:
    """Raise UsageError for an address or a hash that is not valid."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        valid = False
    if not valid or not url.isascii() or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UsageError(
            f"{redact(url)!r} is not an http or https address",
            "use the form https://host/path, with special characters as %xx",
        )
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", sha256.lower()):
        raise UsageError(f"'{sha256}' is not a SHA-256", "pass its 64 hexadecimal digits, or at least the first 8")


@dataclass(frozen=True)
class _Download:
    url: str
    target: Path
    size: int | None
    is_verified: bool
    """Whether the file is checked by size or hash in the end."""
    timeout_s: float
    pause_s: float
    progress: ProgressFn

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def notes(self) -> Path:
        """The file with the _Version of the part."""
        return self.target.with_name(f"{self.target.name}.part.json")

    def run(self) -> None:
        """Download the rest of the file; retry as long as bytes arrive."""
        failures, most, since = 0, self._received(), time.monotonic()
        for _ in range(_TRIES):
            try:
                self._transfer()
                return
            except _Interrupted as interruption:
                why = str(interruption)
            if self._received() > most:
                failures, most, since = 0, self._received(), time.monotonic()
            failures += 1
            if failures >= _TRIES_WITHOUT_PROGRESS or time.monotonic() - since > 2 * self.timeout_s:
                break
            time.sleep(self.pause_s * 2**failures)
        hint = _PART_HINT if self._received() else "or use another mirror"
        raise DataError(f"cannot fetch {redact(self.url)}: {why}", f"check the network and try again; {hint}")

    def discard(self) -> None:
        """Delete the received part. It is deleted before its notes, which do no harm without it."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def _received(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self) -> None:
        known, start = self._known(), self._received()
        if known and start and known.total == start:  # the process ended before the file was renamed
            return
        headers = {"User-Agent": f"inat-ft/{__version__}", "Accept-Encoding": "identity"}
        if known and start:
            headers["Range"] = f"bytes={start}-"
            headers |= {"If-Range": known.condition} if known.condition else {}
        try:
            with _open(urllib.request.Request(self.url, headers=headers), self.timeout_s) as response:
                version, start = self._begin(response, known, start)
                self._receive(response, version.total, start)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == _RANGE_NOT_SATISFIABLE:
                self.discard()
            answer = f"the server answered {error.code} {str(error.reason).partition(chr(10))[0]}"
            if error.code in (*_RETRIED, _RANGE_NOT_SATISFIABLE):
                raise _Interrupted(answer) from None
            raise DataError(f"cannot fetch {redact(self.url)}: {answer}", _ADDRESS_HINT) from None
        except urllib.error.URLError as error:
            raise _Interrupted(f"no connection ({_reason(error.reason)})") from None
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(f"the connection broke off ({_reason(error)})") from None
        except ValueError as error:  # from urllib, among them UnicodeError
            raise DataError(
                f"cannot fetch {redact(self.url)}: the server sent an address or a length that is not valid "
                f"({_reason(error)})",
                _ADDRESS_HINT,
            ) from None

    def _begin(self, response: http.client.HTTPResponse, known: _Version | None, start: int) -> tuple[_Version, int]:
        """Return the version of the response and its first byte; discard a part that does not fit."""
        tag, modified = response.headers.get("ETag") or "", response.headers.get("Last-Modified") or ""
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            sent = response.headers.get("Content-Range", "").strip()
            span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", sent)
            version = _Version(redact(self.url), tag, modified, _number(span and span[2]))
            if not known or not span or int(span[1]) != start or version.contradicts(known):
                self.discard()
                raise _Interrupted("the server sent a part of another version, or not the requested part")
            return _Version(redact(self.url), tag, modified, max(version.total, known.total)), start
        version = _Version(redact(self.url), tag, modified, _number(response.headers.get("Content-Length")))
        if self.size is not None and version.total not in (-1, self.size):
            raise DataError(
                f"{redact(self.url)} has {version.total:,} bytes instead of {self.size:,}",
                "it is not the expected file: use another mirror",
            )
        self.discard()
        try:
            write_text(self.notes, json.dumps(asdict(version)))
        except InatFtError as error:
            raise DataError(error.message, error.hint) from error
        return version, 0

    def _receive(self, response: http.client.HTTPResponse, total: int, start: int) -> None:
        if not self.is_verified:
            response.length = None  # read to the end of the connection, to notice a length that is too short
        done = start
        try:
            with self.part.open("ab") as file:
                while block := _read(response, complete=done == total):
                    file.write(block)
                    done += len(block)
                    self.progress(done, max(total, done))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"cannot write {self.part}: {error.strerror or error}", f"free some space and try again; {_PART_HINT}"
            ) from error
        if 0 <= total < done:
            self.discard()
            raise _Interrupted(f"the server sent more than the {total:,} bytes it announced")
        if done < total:
            raise _Interrupted(f"only {done:,} of {total:,} bytes arrived")

    def _known(self) -> _Version | None:
        try:
            known = _Version(**json.loads(self.notes.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        is_valid = [type(value) for value in asdict(known).values()] == [str, str, str, int]
        is_same = is_valid and known.url == redact(self.url)
        return known if is_same and (known.condition or known.total >= 0) else None


def _open(request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse:
    """Send a request through the proxies of the environment. Redirections to a file or to FTP are not followed."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    response: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
    return response


def _read(response: http.client.HTTPResponse, complete: bool) -> bytes:
    try:
        return response.read1(_BLOCK)
    except (http.client.HTTPException, OSError) as error:
        if complete:  # only the connection was not closed properly
            return b""
        raise _Interrupted(f"the connection broke off ({_reason(error)})") from None


def _reason(error: object) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]  # the text can come from the server
    return getattr(error, "strerror", None) or first_line.strip()


def _number(text: str | None) -> int:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else -1


def _is_complete(file: Path, sha256: str, size: int | None) -> bool:
    return file.exists() and _problem(file, sha256, size) is None


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
