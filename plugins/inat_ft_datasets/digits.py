"""The handwritten digits of scikit-learn as an image folder: real images without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inat_ft.errors import DataError
from inat_ft_datasets.atomic_dir import atomic_directory, file_lock

_SIDE = 32
_TEST_FRACTION = 0.2
_NUM_IMAGES = 1797


def write_digits(to: Path) -> Path:
    """Write 1,797 digits as `to/{train,val}/<digit>/NNNN.png`, grayscale, 32 x 32, unless they exist.

    A fifth of each digit is the test set, `val`. The files are the same, byte for byte, on every machine. Raises DataError if
    `to` contains something else, or if the disk is full. Source: Alpaydin and Kaynak 1998, Optical Recognition of
    Handwritten Digits, as in scikit-learn: 8 x 8 pixels with 17 shades.
    """
    if is_complete(to):
        return to
    with file_lock(to):
        if is_complete(to):  # written by another process meanwhile
            return to
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise DataError(
                f"{to} exists, but it is not the complete digits", f"remove {to}, or choose another folder with --to"
            )
        try:
            with atomic_directory(to) as work:
                _write(work)
        except OSError as error:
            raise DataError(
                f"cannot write the digits to {to}: {error.strerror or error}",
                "free some space, or choose another folder",
            ) from error
    return to


def is_complete(folder: Path) -> bool:
    """Return whether a folder contains all digits."""
    return sum(1 for subset in ("train", "val") for _ in folder.glob(f"{subset}/[0-9]/*.png")) == _NUM_IMAGES


def _write(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in range(10):
        numbers = np.flatnonzero(digits.target == digit)
        order = np.random.default_rng(digit).permutation(len(numbers))
        num_test = round(_TEST_FRACTION * len(numbers))
        for rank, number in enumerate(numbers[order].tolist()):
            grey = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
            file = folder / ("val" if rank < num_test else "train") / str(digit) / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            # Not compressed: otherwise the bytes, and so the hashes in a manifest, depend on the build of zlib.
            Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(file, compress_level=0)
