"""One image file to pixels, in the one way that every run sees them."""

from __future__ import annotations

import hashlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PIXELS_VERSION = "2"
"""Part of every cache key; changes whenever the same file would give other pixels."""

MAX_PIXELS = 178_956_970
"""Largest width times height that is decoded, unless told otherwise: what fits into 512 MiB as RGB."""


_FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI")
"""What is tried, in this order: Pillow knows more, but some take any bytes for an image and one starts Ghostscript."""


_IN_PLAIN_WORDS = {
    "could not create decoder object": "its header cannot be read",
    "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK": "a comment in it is larger than 1 MiB",
}
"""Of what decoders say."""


class ImageProblem(Exception):
    """Why a file is no usable image, in a few words."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_image(path: Path, size: int) -> NDArray[np.uint8]:
    """The whole image (no crop) as uint8 `[size, size, 3]` RGB, resized bilinearly with antialiasing.

    Raises DataError naming the file when it cannot be decoded.
    """
    from torchvision.transforms.v2.functional import resize

    try:
        pixels = decode(path.read_bytes())
    except (OSError, ImageProblem) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        raise DataError(
            f"cannot read the image {path}: {reason}", "split again to leave it out: inat-ft split DATA"
        ) from None
    resized: Tensor = resize(pixels, [size, size], antialias=True)
    array: NDArray[np.uint8] = resized.permute(1, 2, 0).contiguous().numpy()
    return array


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The picture that a browser would show, uint8 `[3, H, W]` RGB, channels last in memory.

    EXIF rotation is applied, transparency laid on white, 16 bits reduced to 8, of animations the first frame taken;
    colour profiles are ignored. Raises ImageProblem for anything that is not a whole image of at most `max_pixels`.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    if not data:
        raise ImageProblem("the file is empty")
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageProblem(f"more than {max_pixels:,} pixels: {width} x {height}")
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        try:  # libjpeg directly: three times as fast as through Pillow, within one grey level
            pixels: Tensor = decode_jpeg(buffer, ImageReadMode.RGB, apply_exif_orientation=True)
            return pixels
        except RuntimeError as error:
            raise _problem(error) from None
    try:
        array = np.array(_to_rgb(image))
    except ImageProblem:
        raise
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        raise _problem(error) from None
    return torch.from_numpy(array).permute(2, 0, 1)


def _open(data: bytes) -> Image:
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # the size is checked by our own limit, right after the header has been read
    try:
        return Image.open(BytesIO(data), formats=_forms())
    except UnidentifiedImageError:
        form = next((form for form in _forms() if _begins_as(data, form)), None)
        raise (damaged(f"it only begins as {form}") if form else ImageProblem("no image")) from None
    except Exception as error:  # as above
        raise _problem(error) from None


def _begins_as(data: bytes, form: str) -> bool:
    from PIL import Image

    accept = Image.OPEN[form][1]
    return accept is not None and accept(data[:16]) is True


@cache
def _forms() -> list[str]:
    from PIL import Image

    Image.init()
    return [form for form in _FORMS if form in Image.OPEN]


def _to_rgb(image: Image) -> Image:
    from PIL import Image, ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scaling
        wide = np.asarray(image).astype(np.int64)
        wide[wide == image.info.get("transparency", -1)] = 65535
        return Image.fromarray((np.clip(wide, 0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageProblem("floating-point pixels have no agreed brightness")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return image.convert("RGB")


def _problem(error: Exception) -> ImageProblem:
    """What a decoder says, without what hangs on its build: it goes into manifests."""
    words = (str(error).splitlines() or [type(error).__name__])[0]
    if ".cpp:" in words:  # function, file and line stand before what torchvision has to say
        words = words.partition(".cpp:")[2].partition(", ")[2]
    if any(word in words.lower() for word in ("truncated", "premature", "incomplete")):
        return ImageProblem("truncated")
    return damaged(_IN_PLAIN_WORDS.get(words, words))


def damaged(what: str) -> ImageProblem:
    """The problem of a file that is an image but not a whole one."""
    return ImageProblem(f"truncated or damaged: {what}"[:200])
