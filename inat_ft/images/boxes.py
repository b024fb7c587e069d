"""Boxes around animals or other objects in image files, as MegaDetector gives them.

A path can end in a box: `a.jpg#xywh=0.1,0.2,0.5,0.25` is the part of a.jpg with this left edge, top edge, width and height,
as fractions of the upright image. Such a path stands for an image of its own, in manifests, predictions and caches.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from inat_ft.errors import DataError

_COLUMNS = ("x", "y", "w", "h")
_BOX = re.compile(r"#xywh=(?P<x>[^,/]+),(?P<y>[^,/]+),(?P<w>[^,/]+),(?P<h>[^,/]+)$")
_ROUNDING = 0.001
"""How far a box can extend beyond the image, because its numbers are rounded."""


class Box(NamedTuple):
    """Left edge, top edge, width and height as fractions of the image."""

    x: float
    y: float
    w: float
    h: float


def file_of(path: str) -> str:
    """Return a path without its box."""
    return _BOX.sub("", path)


def shared_file(path: str) -> str:
    """Return the file of a path with a box, whose other boxes belong to the same group; "" without a box."""
    return file if (file := file_of(path)) != path else ""


def split_path(path: Path) -> tuple[Path, Box | None]:
    """Return the file of a path, and its box. Raises DataError for a box that is not valid."""
    match = _BOX.search(path.name)
    return (path.with_name(file_of(path.name)), _box(match.groupdict())) if match else (path, None)


def add_box(path: str, row: Mapping[str, str]) -> str:
    """Return a path with the box in the columns x, y, w and h of a CSV, if it has three of them or all. Raises DataError."""
    values = {name: row.get(name, "") for name in _COLUMNS}
    if len(row.keys() & values.keys()) < 3 or not any(values.values()):
        return path
    return f"{path}#xywh={','.join(f'{value:g}' for value in _box(row))}"


def _box(values: Mapping[str, str]) -> Box:
    try:
        box = Box(*(float(values[name]) for name in _COLUMNS))
    except (KeyError, ValueError):
        box = Box(*[math.nan] * 4)
    ends = (box.x + box.w, box.y + box.h)
    if not (min(box[:2]) >= 0 and max(box[:2]) < 1 and min(box[2:]) > 0 and max(ends) <= 1 + _ROUNDING):
        shown = ", ".join(f"{name} {values.get(name) or 'missing'}" for name in _COLUMNS)
        hint = "give x, y, w and h as fractions of the image, 0 to 1"
        raise DataError(f"the box {shown} is not inside the image", hint)
    return box


def image_hash(data: bytes, box: Box | None) -> str:
    """Return the SHA-256 in hex of the bytes of a file or, with a box, of their SHA-256 and the box."""
    whole = hashlib.sha256(data).hexdigest()
    return hashlib.sha256(f"{whole} {tuple(box)}".encode()).hexdigest() if box else whole
