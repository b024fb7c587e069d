"""Open an image file: read its header, or report why it is not a usable image."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Formats to try, in this order. Pillow reads more, but some of its plugins accept any bytes, one starts Ghostscript, and ICO
decodes its image before it reports the size."""

_WEBP_ANIMATED, _WEBP_ALPHA = 0x02, 0x10
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands in the first box of an HEIC file. AVIF, which Pillow reads, shares `mif1` and `msf1`."""

_CLEARER = {
    "could not create decoder object": "its header cannot be read",
    "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK": "a comment in it is larger than 1 MiB",
}
_LIMIT_LOCK = threading.Lock()


class ProblemKind(Enum):
    """Why a file is not a usable image."""

    UNREADABLE = "cannot be read"
    NOT_A_FILE = "not a regular file"
    EMPTY = "the file is empty"
    NOT_AN_IMAGE = "not an image"
    DAMAGED = "truncated or damaged"
    TOO_LARGE = "too large"
    UNSUPPORTED = "not supported"


class ImageProblem(Exception):
    """A file is not a usable image. `str()` gives "kind: detail", or "kind" where there is no detail."""

    def __init__(self, kind: ProblemKind, detail: str = "") -> None:
        super().__init__(f"{kind.value}: {detail}"[:200] if detail else kind.value)
        self.kind = kind
        self.detail = detail


def open_header(data: bytes) -> ImageFile:
    """Read the header of an image, without decoding its pixels.

    Call Pillow's plugins as `Image.open` does, but without its global limit on pixels: the caller checks the size.
    Raises ImageProblem.
    """
    from PIL import Image

    if data[12:16] == b"VP8X" and len(data) > 20 and data[20] & _WEBP_ANIMATED:
        # without the flag for alpha, pixels that the first frame does not cover would be black
        data = data[:20] + bytes([data[20] | _WEBP_ALPHA]) + data[21:]
    recognized = ""
    for name in _formats_to_try(data):
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(data[:16])
        if not accepted or isinstance(accepted, str):  # a string explains why Pillow cannot read the file
            continue
        try:
            try:
                return factory(BytesIO(data), "")
            except Image.DecompressionBombError:  # the WebP plugin checks the limit itself
                with without_pixel_limit():
                    return factory(BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # a plugin rejects another format with these
            recognized = recognized or (name if accept else "")
        except Exception as error:
            raise decoder_problem(error) from None
    if recognized:
        raise ImageProblem(ProblemKind.DAMAGED, f"only its first bytes are {recognized}")
    raise ImageProblem(ProblemKind.NOT_AN_IMAGE)


@contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Lift Pillow's limit on pixels, and restore it afterwards. The limit is global, so one thread at a time does so."""
    from PIL import Image

    with _LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _formats_to_try(data: bytes) -> list[str]:
    if not (data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS) or b"avif" in data[16:64]:
        return _installed_formats()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageProblem(
            ProblemKind.UNSUPPORTED, "HEIC requires the extra heif, pip install 'inat-ft[heif]'"
        ) from None
    register_heif_opener()
    return ["HEIF"]


@cache
def _installed_formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def decoder_problem(error: Exception) -> ImageProblem:
    """Return the problem for an exception of a decoder, with the first line of its message."""
    message = (str(error).splitlines() or ["its data cannot be decoded"])[0]
    return ImageProblem(ProblemKind.DAMAGED, _CLEARER.get(message, message))
