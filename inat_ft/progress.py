"""The callbacks through which long work reports progress and messages."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

ProgressFn = Callable[[int, int], None]
"""Called with (done, total)."""

Log = Callable[[str], None]
"""Called with one line of text for the user."""


class ProgressBar(Protocol):
    """Start a progress report: `with progress("decoding", "images") as update: update(3, 10)`."""

    def __call__(self, what: str, unit: str = "images", /) -> AbstractContextManager[ProgressFn]: ...


def ignore_progress(done: int, total: int) -> None:
    """Discard a progress report."""


def no_progress(what: str, unit: str = "images", /) -> AbstractContextManager[ProgressFn]:
    return nullcontext(ignore_progress)


def ignore_log(line: str) -> None:
    """Discard a message."""
