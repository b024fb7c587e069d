"""Downloads that go on after an interruption and never leave half a file under the final name."""

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
from inat_ft.download.atomic_dir import file_lock
from inat_ft.errors import DataError, InatFtError, UsageError
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.records import write_text

_BLOCK = 2**20
_TRIES_WITHOUT_PROGRESS = 4
_TRIES = 1000
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_RANGE_NOT_SATISFIABLE = 416
_PART_HINT = "what has arrived is kept, and only the rest is fetched then if the server can send a part"


class _Interrupted(Exception):
    """The transfer broke off; what has arrived is kept."""


@dataclass(frozen=True)
class _Version:
    """What a server says of the file it sends, so that parts of two versions are never joined."""

    url: str
    tag: str = ""
    modified: str = ""
    total: int = -1
    """Bytes of the whole file, -1 when not said."""

    @property
    def condition(self) -> str:
        """For If-Range, which takes no weak tags (RFC 9110, 13.1.5)."""
        return self.tag if self.tag and not self.tag.startswith("W/") else self.modified

    def contradicts(self, other: _Version) -> bool:
        """Whether both say something that differs; an answer with a part of the file may say less than one with all."""
        return any(
            (mine not in ("", -1)) and (theirs not in ("", -1)) and mine != theirs
            for mine, theirs in zip(asdict(self).values(), asdict(other).values(), strict=True)
        )


@dataclass(frozen=True)
class _Download:
    url: str
    target: Path
    size: int | None
    vouched: bool
    """A size or hash is known, by which the file is judged in the end."""
    timeout_s: float
    pause_s: float
    progress: ProgressFn

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def notes(self) -> Path:
        """The _Version that the part belongs to."""
        return self.target.with_name(f"{self.target.name}.part.json")

    def run(self) -> None:
        """Fetch the rest of the file, trying again as long as something arrives."""
        failures, most, since = 0, self._arrived(), time.monotonic()
        for _ in range(_TRIES):
            try:
                self._transfer()
                return
            except _Interrupted as interruption:
                why = str(interruption)
            if self._arrived() > most:
                failures, most, since = 0, self._arrived(), time.monotonic()
            failures += 1
            if failures >= _TRIES_WITHOUT_PROGRESS or time.monotonic() - since > 2 * self.timeout_s:
                break
            time.sleep(self.pause_s * 2**failures)
        hint = _PART_HINT if self._arrived() else "or use another mirror"
        raise DataError(f"cannot fetch {self.url}: {why}", f"check the network and try again; {hint}")

    def start_again(self) -> None:
        """Forget what has arrived. The part goes before its notes: notes without a part do no harm."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self) -> None:
        known, start = self._known(), self._arrived()
        if known and start and known.total == start:  # killed between the last byte and the renaming
            return
        headers = {"User-Agent": f"inat-ft/{__version__}", "Accept-Encoding": "identity"}
        if known and start:
            headers["Range"] = f"bytes={start}-"
            headers |= {"If-Range": known.condition} if known.condition else {}
        request = urllib.request.Request(self.url, headers=headers)
        try:
            with self._answer(request) as answer:
                version, start = self._begin(answer, known, start)
                self._receive(answer, version.total, start)
        except urllib.error.HTTPError as error:
            error.close()
            self._refused(error.code, str(error.reason).partition("\n")[0])  # of a loop urllib tells over several lines
        except urllib.error.URLError as error:
            raise _Interrupted(f"no connection ({_reason(error.reason)})") from None
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(f"the connection broke off ({_reason(error)})") from None

    def _answer(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            answer: http.client.HTTPResponse = _opener().open(request, timeout=self.timeout_s)
        except ValueError as error:  # a UnicodeError is one
            raise DataError(
                f"cannot fetch {self.url}: the server sent on to an address, or a length, that is none ({_reason(error)})",
                "check the address, or use another mirror",
            ) from None
        return answer

    def _refused(self, code: int, reason: str) -> None:
        if code == _RANGE_NOT_SATISFIABLE:
            self.start_again()
            raise _Interrupted("the server has less of it than it said (416)")
        if code in _PASSING:
            raise _Interrupted(f"the server answered {code} {reason}")
        raise DataError(
            f"cannot fetch {self.url}: the server answered {code} {reason}", "check the address, or use another mirror"
        )

    def _begin(self, answer: http.client.HTTPResponse, known: _Version | None, start: int) -> tuple[_Version, int]:
        """What the answer holds, and from which byte on. The part and its notes are made to fit it."""
        tag, modified = answer.headers.get("ETag") or "", answer.headers.get("Last-Modified") or ""
        if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", answer.headers.get("Content-Range", "").strip())
            version = _Version(self.url, tag, modified, _number(span and span[2]))
            if not known or not span or int(span[1]) != start or version.contradicts(known):
                self.start_again()
                raise _Interrupted("the server sent a part of another version, or another part than was asked for")
            return _Version(self.url, tag, modified, max(version.total, known.total)), start
        version = _Version(self.url, tag, modified, _number(answer.headers.get("Content-Length")))
        if self.size is not None and version.total not in (-1, self.size):
            raise DataError(
                f"{self.url} has {version.total:,} bytes instead of {self.size:,}",
                "it is not the file that was expected: use another mirror",
            )
        self.start_again()
        try:
            write_text(self.notes, json.dumps(asdict(version)))
        except InatFtError as error:
            raise DataError(error.message, error.hint) from error
        return version, 0

    def _receive(self, answer: http.client.HTTPResponse, total: int, start: int) -> None:
        if not self.vouched:
            answer.length = None  # read on to the end of the connection, which tells when the length was too short
        done = start
        try:
            with self.part.open("ab") as file:
                while block := _read(answer, complete=done == total):
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
            self.start_again()
            raise _Interrupted(f"the server sent more than the {total:,} bytes it announced")
        if done < total:
            raise _Interrupted(f"only {done:,} of {total:,} bytes arrived")

    def _known(self) -> _Version | None:
        try:
            known = _Version(**json.loads(self.notes.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return known if known.url == self.url and (known.condition or known.total >= 0) else None


def download(
    url: str,
    to: Path,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    size: int | None = None,
    progress: ProgressFn = ignore_progress,
    timeout_s: float = 15.0,
    pause_s: float = 0.5,
) -> Path:
    """Fetch a URL into the file `to`; nothing happens when it is there already, with the right hash and size.

    sha256 (or the first digits of it) and size in bytes are checked when given. An interrupted download is kept beside the
    target, as `.part`, and goes on next time if the server still has the same version (by ETag, else Last-Modified, else
    length); progress gets (done, total) in bytes.
    timeout_s: of one read; pause_s: before the first retry, doubled each time. Raises DataError saying what went wrong,
    soon when there is no network, and UsageError for an address or a hash that cannot be one.
    """
    given = sha256 if sha256 is not None else sha256_prefix
    require_request(url, given)
    wanted = (given or "").lower()
    if to.is_dir():
        raise UsageError(f"{to} is a folder, not a file to download into", "name a file")
    if _is_right(to, wanted, size):  # asked before locking too: the folder may be one that cannot be written
        return to
    with file_lock(to):
        if _is_right(to, wanted, size):
            return to
        task = _Download(url, to, size, bool(wanted or size is not None), timeout_s, pause_s, progress)
        resumed = task.part.exists()
        task.run()
        if resumed and _problem(task.part, wanted, size):  # the fault may lie in the part that an earlier run left
            task.start_again()
            task.run()
        if problem := _problem(task.part, wanted, size):
            task.start_again()
            raise DataError(f"what {url} sent is not the file that was expected: {problem}", "use another mirror")
        task.part.replace(to)
        task.notes.unlink(missing_ok=True)
    return to


def require_request(url: str, sha256: str | None) -> None:
    """Raise UsageError for an address or a hash that cannot be one, before anything is written."""
    _require_address(url)
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", sha256.lower()):
        raise UsageError(f"'{sha256}' is not a SHA-256", "give its 64 hexadecimal digits, or at least the first 8")


def _require_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        good = False
    if not good or not url.isascii() or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UsageError(
            f"{url!r} is no http or https address", "it looks like https://host/path, with special characters as %xx"
        )


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https alone, through the environment's proxies: a redirection cannot lead to a file or to FTP."""
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
    return opener


def _read(answer: http.client.HTTPResponse, complete: bool) -> bytes:
    try:
        return answer.read1(_BLOCK)
    except (http.client.HTTPException, OSError) as error:
        if complete:  # it is all here; only the connection was not closed in good order
            return b""
        raise _Interrupted(f"the connection broke off ({_reason(error)})") from None


def _reason(error: object) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]  # what a server sent may be in it
    return getattr(error, "strerror", None) or said.strip()


def _number(text: str | None) -> int:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else -1


def _is_right(file: Path, sha256: str, size: int | None) -> bool:
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
