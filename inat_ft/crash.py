"""Crash reports: the traceback of an unexpected exception in a file, without secrets."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from inat_ft import __version__
from inat_ft.errors import InatFtError, is_disk_full

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "optuna", "timm", "wandb", "typer", "pydantic")
_SECRET = re.compile(r"key|token|password|passwd|secret|credential", re.IGNORECASE)
_PASSWORDS = (
    (re.compile(r"(https?:/+)[^\s:/@'\"]+@"), r"\1***@"),  # a token as the name of the user
    (re.compile(r"(\w+:/+[^\s:/@'\"]*:)[^\s'\"]*@"), r"\1***@"),
    (re.compile(r"(\w+:/[^\s:/@'\"]+:)(?!\*\*\*)[^\s/@'\"]+(?=/)"), r"\1***"),
    (re.compile(r"((?:key|token|password|passwd|secret)['\"]?\s*[=:]\s*['\"]?)[^\s'\"&,;]+", re.IGNORECASE), r"\1***"),
)


def is_refusal(error: BaseException) -> bool:
    """Return whether an error is a missing permission, an invalid file name or a full disk."""
    return isinstance(error, OSError) and (error.errno in _REFUSED or is_disk_full(error))


def write_crash(error: BaseException, *folders: Path) -> Path | None:
    """Write the traceback of an unexpected exception to crash.txt in the first folder that is writable.

    A temporary folder is tried last. A second call with the same exception returns the same file. Returns None for expected
    exceptions, and if no folder is writable.
    """
    known: Path | None = getattr(error, "crash_file", None)
    if known is not None or isinstance(error, InatFtError | MemoryError) or is_refusal(error):
        return known
    rank = os.environ.get("RANK", "0") if "LOCAL_RANK" in os.environ else "0"
    name = "crash.txt" if rank == "0" else f"crash-{rank}.txt"
    versions = [f"inat-ft {__version__}", f"Python {platform.python_version()}", platform.platform()]
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    about = f"{datetime.now(UTC).isoformat(timespec='seconds')}\ncommand: {' '.join(sys.argv)}"
    text = f"{about}\nversions: {', '.join(versions)}\n\n{''.join(traceback.format_exception(error))}"
    for place in (*folders, None):
        with suppress(OSError):
            file = (place or Path(tempfile.mkdtemp(prefix="inat-ft-"))) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(redact(text), encoding="utf-8", errors="backslashreplace", newline="\n")
            error.crash_file = file  # type: ignore[attr-defined]  # read by the command line
            return file
    return None


def redact(text: str) -> str:
    """Remove passwords in URLs, values of keys and tokens, and secrets of the environment from a text."""
    for pattern, replacement in _PASSWORDS:
        text = pattern.sub(replacement, text)
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return text
