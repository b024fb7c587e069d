"""The header of an image file: its format and size, or why it is not a usable image."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""What is tried, in this order: Pillow knows more, but some take any bytes for an image, one starts Ghostscript, and ICO
decodes the picture in it before it tells how large that is."""


_WEBP_ANIMATED, _WEBP_ALPHA = 0x02, 0x10
"""Flags in the header of a WebP."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What an HEIC names itself in its first box; `mif1` and `msf1` are shared with AVIF, which Pillow reads."""


_IN_PLAIN_WORDS = {
    "could not create decoder object": "its header cannot be read",
    "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK": "a comment in it is larger than 1 MiB",
}
"""Of what decoders say."""

_LIMIT_LOCK = threading.Lock()


class ImageProblem(Exception):
    """Why a file is not a usable image, in a few words."""


class TooLarge(ImageProblem):
    """The image has more pixels than the limit."""


def open_header(data: bytes) -> ImageFile:
    """Read the header of an image.

    Calls Pillow's plugins as `Image.open` does, without its limit of pixels: that is a setting of the whole process, and the
    size is checked by the caller right after the header has been read.
    """
    from PIL import Image

    if data[12:16] == b"VP8X" and len(data) > 20 and data[20] & _WEBP_ANIMATED:
        data = data[:20] + bytes([data[20] | _WEBP_ALPHA]) + data[21:]  # or what its frame leaves free would be black
    begins_as = ""
    for form in _forms_of(data):
        factory, accept = Image.OPEN[form]
        accepted = accept is None or accept(data[:16])
        if not accepted or isinstance(accepted, str):  # a string says why Pillow cannot read it
            continue
        try:
            try:
                image = factory(BytesIO(data), "")
            except Image.DecompressionBombError:  # of the plugin for WebP
                with without_pixel_limit():
                    image = factory(BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # how plugins say that it is another format
            begins_as = begins_as or (form if accept else "")
        except Exception as error:  # as above
            raise describe_problem(error) from None
        else:
            return image
    raise damaged(f"it only begins as {begins_as}") if begins_as else ImageProblem("no image")


@contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Lift Pillow's limit of pixels, which is one of the whole process, for an image larger than that."""
    from PIL import Image

    with _LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _forms_of(data: bytes) -> list[str]:
    """The formats to try."""
    if not (data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS) or b"avif" in data[16:64]:
        return _forms()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageProblem("HEIC needs the extra heif, pip install 'inat-ft[heif]'") from None
    register_heif_opener()
    return ["HEIF"]


@cache
def _forms() -> list[str]:
    from PIL import Image

    Image.init()
    return [form for form in _FORMS if form in Image.OPEN]


def describe_problem(error: Exception) -> ImageProblem:
    """What a decoder says, without what hangs on its build: it goes into manifests."""
    words = (str(error).splitlines() or ["its data make no sense"])[0]
    if ".cpp:" in words:  # function, file and line stand before what torchvision has to say
        words = words.partition(".cpp:")[2].partition(", ")[2]
    if any(word in words.lower() for word in ("truncated", "premature", "incomplete")):
        return ImageProblem("truncated")
    return damaged(_IN_PLAIN_WORDS.get(words, words))


def damaged(what: str) -> ImageProblem:
    """The problem of a file that is an image but not a whole one."""
    return ImageProblem(f"truncated or damaged: {what}"[:200])
