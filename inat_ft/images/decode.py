"""Decode an image file to pixels, the same way for every run."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError
from inat_ft.images.opening import ImageProblem, ProblemKind, decoder_problem, open_header, without_pixel_limit
from inat_ft.images.resizing import SQUASH, Resizing, to_square

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from torch import Tensor

PIXELS_VERSION = "4"
"""Part of every cache key. Change it when the same file gives different pixels."""

MAX_PIXELS = 178_956_970
"""Default limit on width times height: an image that needs 512 MiB as RGB."""

_ORIENTATIONS = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
"""EXIF orientation to (transpose rows and columns, then flip these dimensions of `[3, H, W]`)."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION = 258, 262, 284
_WHITE_IS_ZERO, _SEPARATE_PLANES = 0, 2
"""TIFF tags and values."""

_MAX_BYTES = 2**30
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Without this flag, opening a named pipe would block."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex. Raises OSError when it is not a regular file."""
    if not path.is_file():  # reading a named pipe would block
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(file: Path) -> bytes:
    """Return the bytes of a regular file of at most 1 GiB. Raises ImageProblem for anything else."""
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | _NO_WAITING)) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageProblem(ProblemKind.NOT_A_FILE)
            if status.st_size > _MAX_BYTES:
                raise ImageProblem(ProblemKind.TOO_LARGE, f"more than {_MAX_BYTES // 2**20:,} MiB")
            return opened.read(status.st_size)
    except OSError as error:
        raise ImageProblem(ProblemKind.UNREADABLE, error.strerror or str(error)) from None


def load_image(
    path: Path, size: int, max_pixels: int = sys.maxsize, resizing: Resizing = SQUASH, sha256: str | None = None
) -> NDArray[np.uint8]:
    """Return an image as uint8 `[size, size, 3]` RGB, resized with antialiasing.

    By default the number of pixels is not limited, because `split` has checked the images of a manifest. sha256: the expected
    hash of the file, in hex. Raises DataError with the path when the image cannot be decoded or has another hash.
    """
    try:
        data = read_file(path)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(
                f"the image {path} changed after it was checked: its SHA-256 is not {sha256[:12]}...",
                "run the command again to check all files; to split again: inat-ft split DATA",
            )
        pixels = decode(data, max_pixels)
    except ImageProblem as problem:
        reason = problem.detail if problem.kind is ProblemKind.UNREADABLE else str(problem)
        raise DataError(
            f"cannot read the image {path}: {reason}", "split again to leave it out: inat-ft split DATA"
        ) from None
    array: NDArray[np.uint8] = to_square(pixels, size, resizing).permute(1, 2, 0).contiguous().numpy()
    return array


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return the image that a browser would show, uint8 `[3, H, W]` RGB, channels last in memory.

    EXIF rotation is applied, transparency is composited on white, 16 bits are reduced to 8, and an animation gives its first
    frame. Color profiles are ignored. Raises ImageProblem for anything but a complete image of at most `max_pixels`.
    """
    import torch

    if not data:
        raise ImageProblem(ProblemKind.EMPTY)
    image = open_header(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageProblem(ProblemKind.TOO_LARGE, f"{width} x {height} is more than {max_pixels:,} pixels")
    try:
        array = _decode_array(image, data)
    except (ImageProblem, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of any type for damaged files
        raise decoder_problem(error) from None
    return _apply_orientation(torch.from_numpy(array).permute(2, 0, 1), image.info.get("exif"))


def _decode_array(image: ImageFile, data: bytes) -> NDArray[np.uint8]:
    """Return the pixels as stored, uint8 `[H, W, 3]` RGB."""
    import PIL.Image

    from inat_ft.images.jpeg import decode_jpeg

    limit = PIL.Image.MAX_IMAGE_PIXELS
    with without_pixel_limit() if limit is None or image.width * image.height > limit else nullcontext():
        if image.format in ("JPEG", "MPO"):
            return decode_jpeg(image, data)
        if image.format == "PNG":
            open_header(data).verify()  # Pillow decodes images with wrong checksums
        return np.array(_to_rgb(image, data))


def _apply_orientation(pixels: Tensor, exif: bytes | None) -> Tensor:
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


def _to_rgb(image: ImageFile, data: bytes) -> Image:
    from PIL import Image

    if image.format == "TIFF" and _is_misread(image):
        raise ImageProblem(ProblemKind.UNSUPPORTED, "TIFF with 16 bits in separate planes")
    image.info.pop("xmp", None)  # Pillow rotates a TIFF itself, and would use XMP
    first_frame = image.tile[0][1] if image.format == "GIF" and image.tile else None
    image.load()
    rgb = _on_white(image, data)
    if first_frame:  # Pillow fills the rest with the first palette color
        frame, rgb = rgb.crop(first_frame), Image.new("RGB", image.size, "white")
        rgb.paste(frame, first_frame)
    return rgb


def _is_misread(tiff: ImageFile) -> bool:
    """Return whether Pillow would read 16 bits as 8."""
    from PIL.TiffImagePlugin import TiffImageFile

    assert isinstance(tiff, TiffImageFile)
    is_wide = max(tiff.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    return is_wide and tiff.tag_v2.get(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES and tiff.tile[0][0] == "raw"


def _on_white(image: Image, data: bytes) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode == "F":
        raise ImageProblem(ProblemKind.UNSUPPORTED, "floating-point pixels, whose range is not defined")
    if image.format == "PNG":
        _scale_transparent_color(image, bits=data[24])
    if image.format == "BMP" and image.mode == "RGBA" and not np.asarray(image)[..., 3].any():
        return image.convert("RGB")  # some programs leave the alpha bytes empty
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image) -> NDArray[np.uint8]:
    """Scale 12 or 16-bit grey to 8 bits. Pillow would clip it."""
    from PIL.TiffImagePlugin import TiffImageFile

    grey = np.asarray(image).astype(np.int64)
    white, inverted = 65535, False
    if isinstance(image, TiffImageFile):
        if image.mode == "I":
            raise ImageProblem(ProblemKind.UNSUPPORTED, "signed or 32-bit grey pixels, whose range is not defined")
        white = 2 ** image.tag_v2[_BITS_PER_SAMPLE][0] - 1
        inverted = image.tag_v2.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    grey[grey == image.info.get("transparency", -1)] = white
    scaled = (np.clip(grey, 0, white) * 255 // white).astype(np.uint8)
    return 255 - scaled if inverted else scaled


def _scale_transparent_color(png: Image, bits: int) -> None:
    """Scale the transparent color of a PNG to 8 bits, as Pillow has scaled its pixels."""
    color = png.info.get("transparency")
    if png.mode == "L" and isinstance(color, int):
        png.info["transparency"] = color * 255 // (2**bits - 1)
    elif png.mode == "RGB" and bits == 16 and color:
        png.info["transparency"] = tuple(sample >> 8 for sample in color)
