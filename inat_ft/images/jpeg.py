"""Decode JPEGs strictly: report the damage that libjpeg only warns about."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_EXTRA_BYTES = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_PADDING = 4
"""Accepted number of different bytes between the image data and the end marker, which some cameras write. More of them are
usually image data that the decoder could not use."""

_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xda"
_NO_LENGTH = {bytes([code]) for code in (0x00, 0x01, 0xFF, *range(0xD0, 0xD9))}
_PROGRESSIVE = {b"\xc2", b"\xca"}
_METADATA = {bytes([code]) for code in (*range(0xE0, 0xF0), 0xFE)}
"""Markers: those without a length, progressive frames, and application data or comments."""


def decode_jpeg(image: ImageFile, data: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a JPEG, uint8 `[H, W, 3]` RGB. Raises ValueError when pixels are damaged or missing.

    image: the JPEG as opened by Pillow, which decodes what TurboJPEG does not: CMYK, unusual chroma subsampling, and headers
    with harmless errors. Its pixels are the same, but it decodes damaged images in part.
    """
    if image.mode != "CMYK":  # TurboJPEG converts CMYK in another way
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True)
            return pixels
        except ValueError:
            pass
    jpeg = strip_metadata(data)
    try:
        simplejpeg.decode_jpeg_header(jpeg, strict=False)
    except ValueError:  # TurboJPEG does not support this chroma subsampling
        return np.array(image.convert("RGB"))
    try:
        simplejpeg.decode_jpeg(jpeg, strict=True)
    except ValueError as error:
        warning = str(error).removeprefix("Corrupt JPEG data: ")
        match = _EXTRA_BYTES.fullmatch(warning)
        end, count = jpeg.find(_END, jpeg.find(b"\xff" + _SCAN)), int(match[1]) if match else 0
        equal_bytes = 0 < count <= end and len(set(jpeg[end - count : end])) == 1
        if not (0 < count <= _MAX_PADDING or equal_bytes):
            raise ValueError(warning) from None
    return np.array(image.convert("RGB"))


def strip_metadata(jpeg: bytes) -> bytes:
    """Return a JPEG without the parts that libjpeg warns about although the pixels are intact: it reports one warning only.

    Removed are comments, application data (JFIF, EXIF, Adobe: colors may change) and bytes between segments. Scan parameters
    of a sequential JPEG are set to the only valid ones. Data that is not a JPEG is returned unchanged.
    """
    kept, at, sequential = [jpeg[:2]], 2, True
    while jpeg.startswith(_START) and (at := jpeg.find(b"\xff", at)) >= 0 and (marker := jpeg[at + 1 : at + 2]):
        if marker in _NO_LENGTH:
            at += 1
            continue
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if marker == _SCAN:
            scan = jpeg[at : end - 3] + b"\x00\x3f\x00" if sequential else jpeg[at:end]
            return b"".join([*kept, scan, jpeg[end:]])
        sequential = sequential and marker not in _PROGRESSIVE
        if marker not in _METADATA:
            kept.append(jpeg[at:end])
        at = end
    return jpeg
