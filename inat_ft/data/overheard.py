"""What libjpeg says of damaged images: it prints to the process's stderr, names no file, and decodes what it can."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_DAMAGE = re.compile(
    r"premature end of .*|\d{4,} extraneous bytes before marker \S+|found marker \S+ instead of RST\S*"
    r"|bad Huffman code|bad arithmetic code|bad progression .*",
    re.IGNORECASE,
)
"""Of its warnings those that mean lost pixels; others, such as a few bytes too many before a marker, do not."""


@dataclass(frozen=True)
class Overheard:
    """What has been printed so far; None where there is no stderr to listen to."""

    file: int | None

    def size(self) -> int:
        """Bytes printed so far."""
        return 0 if self.file is None else os.fstat(self.file).st_size

    def damage_since(self, start: int) -> str:
        """The first damage that was printed after so many bytes, by whatever thread; "" for none."""
        if self.file is None or self.size() == start:
            return ""
        found = _DAMAGE.search(os.pread(self.file, 2**16, start).decode(errors="replace"))
        return found.group() if found else ""


@contextmanager
def overheard() -> Iterator[Overheard]:
    """Listen to what C libraries print to stderr, instead of showing it; Python's own stderr leads where it did."""
    try:
        real = os.dup(2)
    except OSError:  # closed
        yield Overheard(None)
        return
    python = sys.stderr
    with tempfile.TemporaryFile() as heard, open(os.dup(real), "w", encoding="utf-8", errors="replace") as kept:
        os.dup2(heard.fileno(), 2)
        if python is sys.__stderr__:
            sys.stderr = kept
        try:
            yield Overheard(heard.fileno())
        finally:
            sys.stderr = python
            os.dup2(real, 2)
            os.close(real)
