"""Decoding one image file to the pixels that every run sees."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError

PIXELS_VERSION = "1"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_image(path: Path, size: int) -> NDArray[np.uint8]:
    """The whole image resized to uint8 `[size, size, 3]` RGB, bilinear with antialiasing. Raises DataError naming the file."""
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.v2.functional import resize

    try:
        with Image.open(path) as image:
            image.load()
            rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:
        raise DataError(f"cannot decode {path}: {error}", "check the images: inat-ft split DATA") from error
    tensor = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    return resize(tensor, [size, size], antialias=True).permute(1, 2, 0).contiguous().numpy()
