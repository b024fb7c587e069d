"""Decode an image file to pixels, the same way for every run."""

from __future__ import annotations

import os
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError
from inat_ft.images.boxes import image_hash, split_path
from inat_ft.images.resizing import SQUASH, Resizing, crop, to_square

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from torch import Tensor

PIXELS_VERSION = "5"
"""Part of every cache key. Change it when the same file gives different pixels."""

MAX_PIXELS = 178_956_970
"""Default limit on width times height: an image that needs 512 MiB as RGB."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Formats to try, in this order. Pillow reads more, but some of its plugins accept any bytes, one starts Ghostscript, and ICO
decodes its image before it reports the size."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands in the first box of an HEIC file. AVIF, which Pillow reads, shares `mif1` and `msf1`."""

_FLIPS = [(False, (2,)), (False, (1, 2)), (False, (1,)), (True, ()), (True, (2,)), (True, (1, 2)), (True, (1,))]
_ORIENTATIONS = dict(enumerate(_FLIPS, 2))
"""EXIF orientation to (transpose rows and columns, then flip these dimensions of `[3, H, W]`)."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION = 258, 262, 284
_WHITE_IS_ZERO, _SEPARATE_PLANES = 0, 2
"""TIFF tags and values."""

_CLEARER = {
    "could not create decoder object": "its header cannot be read",
    "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK": "a comment in it is larger than 1 MiB",
}
_MAX_BYTES = 2**30
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Without this flag, opening a named pipe would block."""
_LIMIT_LOCK = threading.Lock()


class ImageProblem(Exception):
    """A file is not a usable image. The message says why."""


class TooLargeError(ImageProblem):
    """An image has more pixels, or a file more bytes, than the limit."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of an image, in hex (boxes.py). Raises ImageProblem as `read_file` does."""
    file, box = split_path(path)
    return image_hash(read_file(file), box)


def read_file(file: Path) -> bytes:
    """Return the bytes of a regular file of at most 1 GiB. Raises ImageProblem for anything else."""
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | _NO_WAITING)) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageProblem("not a regular file")
            if status.st_size > _MAX_BYTES:
                raise TooLargeError(f"too large: more than {_MAX_BYTES // 2**20:,} MiB")
            return opened.read(status.st_size)
    except OSError as error:
        raise ImageProblem(f"cannot be read: {error.strerror or error}") from None


def load_image(
    path: Path, size: int, max_pixels: int = sys.maxsize, resizing: Resizing = SQUASH, sha256: str | None = None
) -> NDArray[np.uint8]:
    """Return an image as uint8 `[size, size, 3]` RGB, resized with antialiasing.

    By default the number of pixels is not limited, because `split` has checked the images of a manifest. sha256: the expected
    hash of the file, in hex. Raises DataError with the path when the image cannot be decoded or has another hash.
    """
    try:
        file, box = split_path(path)
        data = read_file(file)
        if sha256 is not None and image_hash(data, box) != sha256:
            problem = f"the image {path} changed after it was checked: its SHA-256 is not {sha256[:12]}..."
            raise DataError(problem, "run the command again to check all files; to split again: inat-ft split DATA")
        pixels = crop(decode(data, max_pixels), box)
    except ImageProblem as problem:
        reason = str(problem).removeprefix("cannot be read: ")
        hint = "split again to leave it out: inat-ft split DATA"
        raise DataError(f"cannot read the image {path}: {reason}", hint) from None
    array: NDArray[np.uint8] = to_square(pixels, size, resizing).permute(1, 2, 0).contiguous().numpy()
    return array


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return the image that a browser would show, uint8 `[3, H, W]` RGB, channels last in memory.

    EXIF rotation is applied, transparency is composited on white, 16 bits are reduced to 8, and an animation gives its first
    frame. Color profiles are ignored. Raises ImageProblem for anything but a complete image of at most `max_pixels`.
    """
    import torch

    if not data:
        raise ImageProblem("the file is empty")
    image = _open_header(data)
    width, height = image.size
    if width * height > max_pixels:
        raise TooLargeError(f"too large: {width} x {height} is more than {max_pixels:,} pixels")
    try:
        array = _decode_array(image, data)
    except (ImageProblem, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of any type for damaged files
        raise _decoder_problem(error) from None
    return apply_orientation(torch.from_numpy(array).permute(2, 0, 1), image.info.get("exif"))


def _open_header(data: bytes) -> ImageFile:
    """Call Pillow's plugins as `Image.open` does, but without its global limit on pixels: the caller checks the size."""
    from PIL import Image

    Image.init()
    recognized = ""
    for name in _formats_to_try(data):
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = factory and (accept is None or accept(data[:16]))
        if not factory or not accepted or isinstance(accepted, str):  # a string says why Pillow cannot read the file
            continue
        try:
            return factory(BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # a plugin rejects another format with these
            recognized = recognized or (name if accept else "")
        except Exception as error:
            raise _decoder_problem(error) from None
    raise ImageProblem(f"truncated or damaged: only its first bytes are {recognized}" if recognized else "not an image")


@contextmanager
def _without_pixel_limit() -> Iterator[None]:
    """Lift Pillow's limit on pixels, and restore it afterwards. The limit is global, so one thread at a time does so."""
    from PIL import Image

    with _LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _formats_to_try(data: bytes) -> tuple[str, ...]:
    if not (data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS) or b"avif" in data[16:64]:
        return _FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageProblem("not supported: HEIC requires the extra heif, pip install 'inat-ft[heif]'") from None
    register_heif_opener()
    return ("HEIF",)


def _decoder_problem(error: Exception) -> ImageProblem:
    message = (str(error).splitlines() or ["its data cannot be decoded"])[0]
    return ImageProblem(f"truncated or damaged: {_CLEARER.get(message, message)}"[:200])


def _decode_array(image: ImageFile, data: bytes) -> NDArray[np.uint8]:
    """Return the pixels as stored, uint8 `[H, W, 3]` RGB."""
    import PIL.Image

    from inat_ft.images.jpeg import decode_jpeg

    limit = PIL.Image.MAX_IMAGE_PIXELS
    with _without_pixel_limit() if limit is None or image.width * image.height > limit else nullcontext():
        if image.format in ("JPEG", "MPO"):
            return decode_jpeg(image, data)
        if image.format == "PNG":
            _open_header(data).verify()  # Pillow decodes images with wrong checksums
        return np.array(_to_rgb(image))


def apply_orientation(pixels: Tensor, exif: bytes | None) -> Tensor:
    """Rotate or mirror pixels `[3, H, W]` as EXIF specifies. XMP, which Pillow reads too, is ignored, as in browsers."""
    from PIL import ExifTags, Image

    if not exif:
        return pixels
    tags = Image.Exif()
    try:
        tags.load(exif)
        transposed, flipped = _ORIENTATIONS[tags[ExifTags.Base.Orientation]]
    except Exception:  # no orientation, upright, or damaged: Pillow then raises exceptions of any type
        return pixels
    return (pixels.transpose(1, 2) if transposed else pixels).flip(flipped)


def _to_rgb(image: ImageFile) -> Image:
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

    if isinstance(image, TiffImageFile) and image.tile[0][0] == "raw":
        bits, planes = image.tag_v2.get(_BITS_PER_SAMPLE, (1,)), image.tag_v2.get(_PLANAR_CONFIGURATION)
        if max(bits) > 8 and planes == _SEPARATE_PLANES:  # Pillow would read 16 bits as 8
            raise ImageProblem("not supported: TIFF with 16 bits in separate planes")
    image.info.pop("xmp", None)  # Pillow rotates a TIFF itself, and would use XMP
    image.load()
    if image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode == "F":
        raise ImageProblem("not supported: floating-point pixels, whose range is not defined")
    if image.format == "BMP" and image.mode == "RGBA" and not np.asarray(image)[..., 3].any():
        return image.convert("RGB")  # some programs leave the alpha bytes empty
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image) -> NDArray[np.uint8]:
    """Scale 12 or 16-bit gray to 8 bits. Pillow would clip it."""
    from PIL.TiffImagePlugin import TiffImageFile

    gray = np.asarray(image).astype(np.int64)
    white, inverted = 65535, False
    if isinstance(image, TiffImageFile):
        if image.mode == "I":
            raise ImageProblem("not supported: signed or 32-bit gray pixels, whose range is not defined")
        white = 2 ** image.tag_v2[_BITS_PER_SAMPLE][0] - 1
        inverted = image.tag_v2.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    gray[gray == image.info.get("transparency", -1)] = white
    scaled = (np.clip(gray, 0, white) * 255 // white).astype(np.uint8)
    return 255 - scaled if inverted else scaled
