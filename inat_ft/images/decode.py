"""One image file to pixels, in the one way that every run sees them."""

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
from inat_ft.images.opening import ImageProblem, TooLarge, describe_problem, open_header, without_pixel_limit
from inat_ft.images.resizing import SQUASH, Resizing, to_square

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from torch import Tensor

PIXELS_VERSION = "4"
"""Part of every cache key; changes whenever the same file would give other pixels."""

MAX_PIXELS = 178_956_970
"""Largest width times height that is decoded, unless told otherwise: what fits into 512 MiB as RGB."""


_TURNED = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
"""For each orientation of EXIF but the upright: whether rows and columns change places, and which are mirrored then.

In dimensions of `[3, H, W]`."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES = 258, 262, 284
_WHITE_IS_ZERO, _SEPARATE = 0, 2
"""Tags of TIFF, and values."""
_MAX_BYTES = 2**30
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Opening a pipe would wait for ever."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OSError where there is no regular file: a pipe would be waited for."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(file: Path) -> bytes:
    """The bytes of a regular file of at most 1 GiB. Raises ImageProblem for anything else."""
    try:
        handle = os.open(file, os.O_RDONLY | _NO_WAITING)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ImageProblem("no regular file")
            if status.st_size > _MAX_BYTES:
                raise ImageProblem(f"more than {_MAX_BYTES // 2**20:,} MiB")
            parts, missing = [], status.st_size
            while missing > 0 and (part := os.read(handle, missing)):
                parts.append(part)
                missing -= len(part)
            return b"".join(parts)
        finally:
            os.close(handle)
    except OSError as error:
        raise ImageProblem(f"cannot be read: {error.strerror}") from None


def load_image(
    path: Path, size: int, max_pixels: int = sys.maxsize, resizing: Resizing = SQUASH, sha256: str | None = None
) -> NDArray[np.uint8]:
    """Return an image as uint8 `[size, size, 3]` RGB, resized with antialiasing.

    Without a limit of pixels, since `split` has set one for the images of a manifest. sha256: what the bytes that are decoded
    must have, in hex. Raises DataError naming the file when it cannot be decoded or has other content.
    """
    try:
        data = read_file(path)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(
                f"the image {path} changed after it was checked: its SHA-256 is not {sha256[:12]}...",
                "run the command again, which checks the files anew; to split again: inat-ft split DATA",
            )
        pixels = decode(data, max_pixels)
    except ImageProblem as problem:
        raise DataError(
            f"cannot read the image {path}: {str(problem).removeprefix('cannot be read: ')}",
            "split again to leave it out: inat-ft split DATA",
        ) from None
    array: NDArray[np.uint8] = to_square(pixels, size, resizing).permute(1, 2, 0).contiguous().numpy()
    return array


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The picture that a browser would show, uint8 `[3, H, W]` RGB, channels last in memory.

    EXIF rotation is applied, transparency laid on white, 16 bits reduced to 8, of animations the first frame taken;
    colour profiles are ignored. Raises ImageProblem for anything that is not a whole image of at most `max_pixels`.
    """
    import PIL.Image
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    if not data:
        raise ImageProblem("the file is empty")
    image = open_header(data)
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(f"more than {max_pixels:,} pixels: {width} x {height}")
    try:
        if image.format in ("JPEG", "MPO"):
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            # libjpeg directly: three times as fast as through Pillow, within one grey level
            pixels: Tensor = decode_jpeg(buffer, ImageReadMode.RGB)
        else:
            if image.format == "PNG":
                open_header(data).verify()  # Pillow decodes on where checksums are wrong
            limit = PIL.Image.MAX_IMAGE_PIXELS
            with without_pixel_limit() if limit is None or width * height > limit else nullcontext():
                picture = _to_rgb(image, data)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    except (ImageProblem, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        if "can't allocate memory" in str(error):  # torch's way to say it
            raise MemoryError from None
        raise describe_problem(error) from None
    return _upright(pixels, image.info.get("exif"))


def _upright(pixels: Tensor, exif: bytes | None) -> Tensor:
    """Pixels `[3, H, W]` turned as EXIF says. XMP, which Pillow asks where EXIF is silent, does not count in browsers."""
    from PIL import ExifTags, Image

    if not exif:
        return pixels
    said = Image.Exif()
    try:
        said.load(exif)
        swapped, mirrored = _TURNED[said[ExifTags.Base.Orientation]]
    except Exception:  # none, upright, or damaged, of which Pillow raises what it likes
        return pixels
    return (pixels.transpose(1, 2) if swapped else pixels).flip(mirrored)


def _to_rgb(image: ImageFile, data: bytes) -> Image:
    from PIL import Image

    if image.format == "TIFF" and _is_misread(image):
        raise ImageProblem("TIFF of 16 bits in separate planes is not understood")
    image.info.pop("xmp", None)  # a TIFF is turned by Pillow itself, which must not ask XMP
    covered = image.tile[0][1] if image.format == "GIF" and image.tile else None
    image.load()
    picture = _on_white(image, data)
    if covered:  # outside its first frame, Pillow fills an animation with the first colour of its palette
        frame, picture = picture.crop(covered), Image.new("RGB", image.size, "white")
        picture.paste(frame, covered)
    return picture


def _is_misread(image: ImageFile) -> bool:
    """Whether Pillow would take 16 bits for 8."""
    from PIL.TiffImagePlugin import TiffImageFile

    assert isinstance(image, TiffImageFile)
    is_wide = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    return is_wide and image.tag_v2.get(_PLANES) == _SEPARATE and image.tile[0][0] == "raw"


def _on_white(image: Image, data: bytes) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "F":
        raise ImageProblem("floating-point pixels have no agreed brightness")
    if image.format == "PNG":
        _scale_key(image, bits=data[24])
    if image.format == "BMP" and image.mode == "RGBA" and not np.asarray(image)[..., 3].any():
        return image.convert("RGB")  # some programs leave the bytes for transparency empty
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image) -> NDArray[np.uint8]:
    """Grey of 12 or 16 bits in 8, to which Pillow would clip it instead of scaling."""
    from PIL.TiffImagePlugin import TiffImageFile

    wide = np.asarray(image).astype(np.int64)
    white, inverted = 65535, False
    if isinstance(image, TiffImageFile):
        if image.mode == "I":
            raise ImageProblem("grey pixels that are signed or have 32 bits have no agreed brightness")
        white, inverted = (
            2 ** image.tag_v2[_BITS_PER_SAMPLE][0] - 1,
            image.tag_v2.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO,
        )
    wide[wide == image.info.get("transparency", -1)] = white
    grey = (np.clip(wide, 0, white) * 255 // white).astype(np.uint8)
    return 255 - grey if inverted else grey


def _scale_key(image: Image, bits: int) -> None:
    """The colour of a PNG that is transparent, as its pixels have been scaled to 8 bits."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**bits - 1)
    elif image.mode == "RGB" and bits == 16 and key:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
