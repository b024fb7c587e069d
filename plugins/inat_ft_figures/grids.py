"""Grids of images with their true and predicted classes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.errors import DataError
from inat_ft.images.boxes import split_path
from inat_ft.images.decode import ImageProblem, decode, load_image, read_file
from inat_ft.images.resizing import SQUASH, Resizing, crop
from inat_ft.metrics.base import Predictions
from inat_ft_figures.figures import GREEN, ORANGE, new_figure, plotting, save, shorten

_COLUMNS = 3
_DPI = 110
_PIXELS = 160
"""Longer side of an image."""


def load_whole(path: Path, longest: int) -> NDArray[np.uint8]:
    """Return a whole image uint8 `[H, W, 3]` with its aspect ratio, whose longer side has `longest` pixels.

    Raises DataError with the path when the image cannot be decoded.
    """
    from PIL import Image, ImageOps

    file, box = split_path(path)
    try:
        pixels = crop(decode(read_file(file), sys.maxsize), box)
    except ImageProblem as problem:
        raise DataError(f"cannot read the image {path}: {problem}") from None
    return np.asarray(ImageOps.contain(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (longest, longest)))


def draw_images(
    p: Predictions,
    rows: Sequence[int],
    stem: Path,
    root: Path,
    title: str,
    maps: NDArray[np.float32] | None = None,
    resizing: Resizing = SQUASH,
) -> list[Path]:
    """Draw a grid of images with their classes as PNG and SVG.

    maps: class activation maps `[N, S, S]` from 0 to 1, drawn beside each image. resizing: of the images that have maps.
    """
    lines = max(1, -(-len(rows) // _COLUMNS))
    with plotting():
        width = _COLUMNS * (2.0 if maps is None else 3.4)
        figure, grid = new_figure(width, 0.6 + lines * 1.65, nrows=lines, ncols=_COLUMNS, squeeze=False)
        figure.suptitle(title if rows else f"{title}: none", fontweight="bold", fontsize=11)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, (axes, row) in enumerate(zip(grid.flat, rows, strict=False)):
            if maps is None:
                _draw_whole(axes, load_whole(root / p.paths[row], _PIXELS))
            else:
                _draw_with_map(axes, load_image(root / p.paths[row], _PIXELS, resizing=resizing), maps[number])
            _write_classes(axes, p, row, 20 if maps is None else 24)
    return save(figure, stem, _DPI)


def _draw_whole(axes: Any, image: NDArray[np.uint8]) -> None:
    height, width = (side / max(image.shape[:2]) for side in image.shape[:2])
    axes.imshow(image, extent=((1 - width) / 2, (1 + width) / 2, (1 - height) / 2, (1 + height) / 2))
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _draw_with_map(axes: Any, image: NDArray[np.uint8], heat: NDArray[np.float32]) -> None:
    axes.imshow(image, extent=(0, 1, 0, 1))
    axes.imshow(image, extent=(1.04, 2.04, 0, 1))
    style = {"cmap": "inferno", "alpha": 0.5, "vmin": 0, "vmax": 1, "interpolation": "bicubic"}
    axes.imshow(heat, extent=(1.04, 2.04, 0, 1), **style)
    axes.set_xlim(0, 2.04)


def _write_classes(axes: Any, p: Predictions, row: int, length: int) -> None:
    correct = p.correct[row]
    confidence = f" ({p.probabilities[row, p.predicted[row]]:.0%})" if p.probabilities is not None else ""
    true, predicted = (shorten(p.classes[label], length) for label in (p.true[row], p.predicted[row]))
    text = f"{true}\n{'✓' if correct else '✗'} {predicted}{confidence}"
    axes.set_title(text, fontsize=8, color=GREEN if correct else ORANGE, loc="center", fontweight="normal")
