"""Figures drawn with Pillow: matplotlib needs most of a second for its import and the first figure.

Everything is drawn at twice the size and reduced, which smooths lines and text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

BLUE, ORANGE, GRID, TEXT = "#0072B2", "#D55E00", "#D9D9D9", "#1B1B1B"
_BLUES = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
_SCALE = 2
_PANEL = 540, 360
"""Size of a chart in pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 40, 48
_MAX_CELLS = 1000
"""Rows and columns of a confusion matrix that are drawn."""
_LABEL = 170
"""Maximum length of a class name beside a confusion matrix, in pixels."""


class Line(NamedTuple):
    """A line of a chart: its points with finite values."""

    label: str
    color: str
    points: list[tuple[float, float]]


def is_drawable(text: str) -> bool:
    """Return whether the font has the characters: Latin, Greek and Cyrillic."""
    return all(ord(c) < 0x250 or 0x370 <= ord(c) < 0x530 or 0x2010 <= ord(c) < 0x2027 for c in text)


@cache
def _font(size: int, bold: bool = False) -> Any:
    spec = find_spec("matplotlib")  # does not import it
    folder = Path(((spec and spec.submodule_search_locations) or ["."])[0], "mpl-data", "fonts", "ttf")
    file = folder / f"DejaVuSans{'-Bold' * bold}.ttf"
    return ImageFont.truetype(str(file), size * _SCALE) if file.is_file() else ImageFont.load_default(size * _SCALE)


class _Canvas:
    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self.pen.line(scaled, fill=color, width=max(1, round(width * _SCALE)), joint="curve")

    def box(self, x: float, y: float, width: float, height: float, color: Any) -> None:
        self.pen.rectangle((x * _SCALE, y * _SCALE, (x + width) * _SCALE - 1, (y + height) * _SCALE - 1), fill=color)

    def dot(self, x: float, y: float, radius: float, color: str) -> None:
        x, y, radius = x * _SCALE, y * _SCALE, radius * _SCALE
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def text(self, x: float, y: float, text: str, size: int = 13, anchor: str = "mm", color: str = TEXT,
             bold: bool = False) -> None:  # fmt: skip
        self.pen.text((x * _SCALE, y * _SCALE), text, fill=color, font=_font(size, bold), anchor=anchor)

    def vertical_text(self, x: float, y: float, text: str, size: int, at_end: bool = True) -> None:
        """Write upward; (x, y) is the middle of the end of the text, or of the whole text."""
        width, height = math.ceil(_font(size).getlength(text)) + 2, 2 * size * _SCALE
        tile = Image.new("L", (width, height), 0)
        ImageDraw.Draw(tile).text((width / 2, height / 2), text, fill=255, font=_font(size), anchor="mm")
        tile = tile.rotate(90, expand=True)
        top = y * _SCALE - (0 if at_end else tile.height / 2)
        self.image.paste(TEXT, (round(x * _SCALE - tile.width / 2), round(top)), tile)

    def save(self, file: Path) -> None:
        self.image.reduce(_SCALE).save(file, format="PNG")


def draw_charts(file: Path, charts: Sequence[tuple[str, Sequence[Line]]]) -> None:
    """Draw charts over the epochs side by side, as PNG."""
    canvas = _Canvas(_PANEL[0] * len(charts), _PANEL[1])
    for number, (title, lines) in enumerate(charts):
        _chart(canvas, _PANEL[0] * number, title, lines)
    canvas.save(file)


def _chart(canvas: _Canvas, x0: float, title: str, lines: Sequence[Line]) -> None:
    width, height = _PANEL
    canvas.text(x0 + _LEFT, 20, title, 15, "lm", bold=True)
    points = [point for line in lines for point in line.points] or [(1, 0.0)]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return x0 + _LEFT + 8 + across * (width - _LEFT - _RIGHT - 16), height - _BOTTOM - up * (
            height - _TOP - _BOTTOM
        )

    for tick in ticks:
        y = place(first, tick)[1]
        canvas.line([(x0 + _LEFT, y), (x0 + width - _RIGHT, y)], GRID)
        canvas.text(x0 + _LEFT - 6, y, f"{tick:.4g}", 12, "rm")
    step = max(1, math.ceil((last - first) / 8))
    for epoch in range(int(first), int(last) + 1, step):
        canvas.text(place(epoch, ticks[0])[0], height - _BOTTOM + 14, str(epoch), 12)
    canvas.text(x0 + (width + _LEFT) / 2, height - 12, "Epoch", 13)
    for number, line in enumerate(lines):
        places = [place(*point) for point in line.points]
        if len(places) > 1:
            canvas.line(places, line.color, 2)
        for each in places if len(places) <= 60 else ():
            canvas.dot(*each, 3, line.color)
        x = x0 + width - _RIGHT - 110 * (len(lines) - number)
        canvas.line([(x, 20), (x + 20, 20)], line.color, 3)
        canvas.text(x + 26, 20, line.label, 12, "lm")


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers that enclose the range."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = power * next(factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def draw_confusion(file: Path, classes: Sequence[str], table: NDArray[np.int64], subset: str) -> None:
    """Draw a confusion matrix as counts and normalized by row, as PNG. Many classes get small cells without numbers.

    With more than 1,000 classes, neighbors share a cell, so that time and memory do not grow with the square of the classes.
    """
    together = math.ceil(len(classes) / _MAX_CELLS)
    if together > 1:
        starts = np.arange(0, len(classes), together)
        table = np.add.reduceat(np.add.reduceat(table, starts, 0), starts, 1)
        classes = classes[::together]
    number = len(classes)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    cell = max(1, min(44, 1000 // number))
    size = min(13, cell - 2)
    names = [_fitted(name, size) for name in classes] if size >= 8 else []
    room = 34 + max((math.ceil(_font(size).getlength(name) / _SCALE) for name in names), default=0)
    side = room + cell * number + 20
    canvas = _Canvas(2 * max(side, 400), side + 34)
    titles = (f"Counts, {int(table.sum()):,} {subset} images", "Normalized by row (recall), in %")
    for panel, title in enumerate(titles):
        x0 = panel * max(side, 400)
        canvas.text(x0 + 12, 18, title, 15, "lm", bold=True)
        _cells(canvas, x0 + room, 34, cell, table, shares, panel == 1)
        for place, name in enumerate(names):
            middle = cell * (place + 0.5)
            canvas.text(x0 + room - 5, 34 + middle, name, size, "rm")
            canvas.vertical_text(x0 + room + middle, 34 + cell * number + 5, name, size)
        canvas.vertical_text(x0 + 12, 34 + cell * number / 2, "True class", 13, at_end=False)
        canvas.text(x0 + room + cell * number / 2, side + 22, "Predicted class", 13)
    canvas.save(file)


def _cells(canvas: _Canvas, x: float, y: float, cell: int, table: NDArray[np.int64], shares: NDArray[np.float64],
           normalized: bool) -> None:  # fmt: skip
    number = len(table)
    anchors = np.linspace(0, 1, len(_BLUES))
    colors = np.stack([np.interp(shares, anchors, channel) for channel in zip(*_BLUES, strict=True)], -1)
    tile = Image.fromarray(colors.round().astype(np.uint8)).resize(
        [number * cell * _SCALE] * 2, Image.Resampling.NEAREST
    )
    canvas.image.paste(tile, (round(x * _SCALE), round(y * _SCALE)))
    if cell < 22:
        return
    for row, column in np.argwhere(table).tolist():
        text = f"{100 * shares[row, column]:.0f}" if normalized else f"{table[row, column]:,}"
        color = "white" if shares[row, column] > 0.55 else TEXT
        size = 12 if len(text) < 5 else 9
        canvas.text(x + (column + 0.5) * cell, y + (row + 0.5) * cell, text, size, color=color)


def _fitted(name: str, size: int) -> str:
    """Return a name that fits beside a matrix: of a long one, the beginning and the end, which tells subspecies apart."""
    shown, kept = name, len(name)
    while _font(size).getlength(shown) > _LABEL * _SCALE:
        kept -= 1
        shown = f"{name[: (kept + 1) // 2].rstrip()}…{name[len(name) - kept // 2 :].lstrip()}"
    return shown
