"""The errors that a user can fix. Every other exception is a bug in inat-ft."""

import errno
import os
import re
from collections.abc import Iterable


class InatFtError(Exception):
    """A failure, described in one sentence with the value that caused it.

    hint: what to do next, in one or more lines. exit_code: of the command line.
    """

    exit_code = 1
    advice = ""
    """The hint of errors that do not have their own."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.advice


class UsageError(InatFtError):
    """A command or an argument is invalid."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown or its value is out of range."""


class DataError(InatFtError):
    """Images, folders or a manifest are invalid."""


class WeightsError(InatFtError):
    """Weights are missing or damaged, or belong to another network."""


class RecordError(InatFtError):
    """A record or a predictions file is invalid."""

    advice = "correct the file, or create it again"


class StorageError(InatFtError):
    """A file cannot be written: the disk is full, or the folder is read-only."""


class BusyError(InatFtError):
    """Another process uses the same run."""

    exit_code = 2


class PluginError(InatFtError):
    """A plugin cannot be loaded, fails or breaks its contract."""


def is_disk_full(error: OSError) -> bool:
    """Return whether the disk is full, a quota is used up, or a file would exceed the size limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `: did you mean 'x'?` for the most similar known name, or an empty string if none is similar."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f": did you mean '{near[0]}'?" if near else ""


def disk_error(error: Exception) -> OSError | None:
    """Return the system error behind an exception: libraries wrap it, and those in Rust only name its code."""
    if isinstance(error, OSError):
        return error
    if isinstance(error.__context__, OSError):
        return error.__context__
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None
