"""What libjpeg says of damaged images: it prints to the process's stderr, names no file, and decodes what it can."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

_TOO_MANY = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_FEW = 4
"""Bytes before the end, which some cameras write. Where a picture lost step, there are more, as a rule."""

_BEGIN, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xda"
_ALONE = {bytes([code]) for code in (0x00, 0x01, 0xFF, *range(0xD0, 0xD9))}
_PROGRESSIVE = {b"\xc2", b"\xca"}
_ADDED = {bytes([code]) for code in (*range(0xE0, 0xF0), 0xFE)}
"""Markers of JPEG: those without a length (and what is none), frames, and segments that say nothing of the pixels."""


@dataclass(frozen=True)
class DecoderWarnings:
    """What has been printed so far; None where there is no stderr to listen to."""

    file: int | None

    def size(self) -> int:
        """Bytes printed so far."""
        return 0 if self.file is None else os.fstat(self.file).st_size

    def read_since(self, start: int) -> str:
        """The first line that was printed after so many bytes, by whatever thread; "" for none."""
        if self.file is None or self.size() == start:
            return ""
        said = os.pread(self.file, 2**16, start).decode(errors="replace")
        return said.partition("\n")[0].removeprefix("Corrupt JPEG data: ")


def is_trailing_padding(said: str, jpeg: bytes) -> bool:
    """Whether libjpeg speaks of a few bytes, or equal ones, after a picture that is complete."""
    too_many = _TOO_MANY.fullmatch(said)
    end = jpeg.find(_END, jpeg.find(b"\xff" + _SCAN))
    count = int(too_many[1]) if too_many else 0
    return 0 < count <= _FEW or (0 < count <= end and len(set(jpeg[end - count : end])) == 1)


def strip_metadata(jpeg: bytes) -> bytes:
    """A JPEG without all that libjpeg may complain of before it comes to the picture: it prints its first warning only.

    Left out are comments, what programs add (JFIF, EXIF, Adobe's: colours may differ) and bytes between the parts; scans of
    a sequential picture get the parameters that those must have. Any other bytes come back as they are.
    """
    kept, at, sequential = [jpeg[:2]], 2, True
    while jpeg.startswith(_BEGIN) and (at := jpeg.find(b"\xff", at)) >= 0 and (marker := jpeg[at + 1 : at + 2]):
        if marker in _ALONE:
            at += 1
            continue
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if marker == _SCAN:
            scan = jpeg[at : end - 3] + b"\x00\x3f\x00" if sequential else jpeg[at:end]
            return b"".join([*kept, scan, jpeg[end:]])
        sequential = sequential and marker not in _PROGRESSIVE
        if marker not in _ADDED:
            kept.append(jpeg[at:end])
        at = end
    return jpeg


def _nowhere() -> BinaryIO:
    """A file without a name: in memory where the system can, since disks may be full."""
    return open(os.memfd_create("heard"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


@contextmanager
def capture_decoder_warnings() -> Iterator[DecoderWarnings]:
    """Listen to what C libraries print to stderr, instead of showing it; Python's own stderr leads where it did."""
    try:
        real = os.dup(2)
        heard = _nowhere()
    except OSError:  # stderr is closed, or there is no folder for temporary files
        yield DecoderWarnings(None)
        return
    python = sys.stderr
    with heard, open(os.dup(real), "w", encoding="utf-8", errors="replace") as kept:
        os.dup2(heard.fileno(), 2)
        if python is sys.__stderr__:
            sys.stderr = kept
        try:
            yield DecoderWarnings(heard.fileno())
        finally:
            sys.stderr = python
            os.dup2(real, 2)
            os.close(real)
