"""What is kept of an exception that nobody expected: the traceback, in a file that can be sent with a report."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from inat_ft import __version__
from inat_ft.errors import InatFtError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "optuna", "timm", "wandb", "typer", "pydantic")
_SECRET = re.compile(r"key|token|password|passwd|secret|credential", re.IGNORECASE)
_PASSWORDS = (
    (re.compile(r"(\w+:/+[^\s:/@'\"]*:)[^\s'\"]*@"), r"\1***@"),
    (re.compile(r"(\w+:/[^\s:/@'\"]+:)(?!\*\*\*)[^\s/@'\"]+(?=/)"), r"\1***"),
    (re.compile(r"((?:key|token|password|passwd|secret)['\"]?\s*[=:]\s*['\"]?)[^\s'\"&,;]+", re.IGNORECASE), r"\1***"),
)


def is_refusal(error: BaseException) -> bool:
    """Whether the system refused something to the user: a right, a name, or space on a disk."""
    return isinstance(error, OSError) and error.errno in (*_REFUSED, *_FULL)


def write_crash(error: BaseException, *folders: Path) -> Path | None:
    """Write the traceback of an unexpected exception to crash.txt in the first of the folders that takes it.

    The last resort is the folder for temporary files. A later call for the same exception returns the same file. None
    stands for an expected exception and for one that could not be written anywhere.
    """
    known: Path | None = getattr(error, "crash_file", None)
    if known is not None or isinstance(error, InatFtError | MemoryError) or is_refusal(error):
        return known
    rank = os.environ.get("RANK", "0") if "LOCAL_RANK" in os.environ else "0"
    name = "crash.txt" if rank == "0" else f"crash-{rank}.txt"
    text = redact(_report(error))
    for place in (*folders, None):
        try:
            folder = Path(tempfile.mkdtemp(prefix="inat-ft-")) if place is None else place
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        error.crash_file = folder / name  # type: ignore[attr-defined]
        return folder / name
    return None


def redact(text: str) -> str:
    """A text without passwords in addresses, values of keys and tokens, and secrets of the environment."""
    for pattern, replacement in _PASSWORDS:
        text = pattern.sub(replacement, text)
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return text


def _report(error: BaseException) -> str:
    found = [f"inat-ft {__version__}", f"Python {platform.python_version()}", platform.platform()]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "\n".join(
        [
            datetime.now(UTC).isoformat(timespec="seconds"),
            f"command: {' '.join(sys.argv)}",
            f"versions: {', '.join(found)}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
