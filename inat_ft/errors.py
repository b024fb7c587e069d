"""Everything that can go wrong and is for the user to mend.

    InatFtError                 exit code 1
      UsageError                exit code 2: what was typed is wrong
        ConfigError             a configuration key or value
      DataError                 images, folders, manifests
      WeightsError              pretrained weights or saved models
      RecordError               records and predictions read back
      StorageError              a full disk or a folder that cannot be written
      BusyError                 another process works on the same run
      PluginError               a strategy or backbone that another package brings

Anything else that is raised is a fault of this program.
"""


class InatFtError(Exception):
    """A failure in one sentence, with the value that caused it.

    `hint` says what to do next; it may have several lines. `exit_code` is what the command line ends with.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(InatFtError):
    """What was typed cannot be done."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown or its value is out of range."""


class DataError(InatFtError):
    """The images or their manifest are not as they should be."""


class WeightsError(InatFtError):
    """Weights are missing, damaged, or made for another network."""


class RecordError(InatFtError):
    """A record or a predictions file cannot be used."""


class StorageError(InatFtError):
    """A file cannot be written: the disk is full, or the folder is read-only."""


class BusyError(InatFtError):
    """Another process is working on the same run."""

    exit_code = 2


class PluginError(InatFtError):
    """A plugin cannot be loaded or breaks its contract."""


def did_you_mean(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """`: did you mean 'x'?` for the nearest of the known words, or an empty string when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f": did you mean '{near[0]}'?" if near else ""
