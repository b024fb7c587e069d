"""The errors that a user can fix. Every other exception is a bug in inat-ft.

InatFtError                 exit code 1
  UsageError                exit code 2
    ConfigError
  DataError
  WeightsError
  RecordError
  StorageError
  BusyError                 exit code 2
  PluginError
"""

import errno
from collections.abc import Iterable


class InatFtError(Exception):
    """A failure, described in one sentence with the value that caused it.

    hint: what to do next, in one or more lines. exit_code: of the command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


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
