"""Real images inside a dependency: scikit-learn's handwritten digits, as an image folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inat_ft.download.atomic_dir import atomic_directory, file_lock
from inat_ft.errors import DataError

_SIDE = 32
_TEST_SHARE = 0.2
_IMAGES = 1797


def write_digits(to: Path) -> Path:
    """Write 1,797 digits as `to/{train,val}/<digit>/NNNN.png`, grey, 32 x 32; nothing happens when they are there.

    A fifth of each digit is the reserved test set, `val`. The bytes are the same every time. Raises DataError when
    something else is there or the disk is full. Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten
    Digits, as shipped by scikit-learn, 8 x 8 with 17 shades.
    """
    if is_complete(to):
        return to
    with file_lock(to):
        if is_complete(to):  # another process was faster
            return to
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise DataError(
                f"{to} exists and is not the digits, or not all of them",
                f"remove {to}, or name another folder with --to",
            )
        try:
            with atomic_directory(to) as work:
                _write(work)
        except OSError as error:
            raise DataError(
                f"cannot write the digits to {to}: {error.strerror or error}", "free some space, or name another folder"
            ) from error
    return to


def is_complete(folder: Path) -> bool:
    """Whether all the digits are there."""
    return sum(1 for subset in ("train", "val") for _ in folder.glob(f"{subset}/[0-9]/*.png")) == _IMAGES


def _write(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in range(10):
        places = np.flatnonzero(digits.target == digit)
        order = np.random.default_rng(digit).permutation(len(places))
        num_test = round(_TEST_SHARE * len(places))
        for rank, number in enumerate(places[order].tolist()):
            grey = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
            file = folder / ("val" if rank < num_test else "train") / str(digit) / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            # Not compressed: the bytes, and with them every hash in a manifest, would hang on the build of zlib.
            Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(file, compress_level=0)
