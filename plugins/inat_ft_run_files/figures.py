"""The figures of a run: curves and confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from inat_ft.records import Epoch, atomic_write
from inat_ft_run_files.drawing import BLUE, ORANGE, Line, draw_charts, draw_confusion, is_drawable
from inat_ft_run_files.results import Results

_MAX_CLASSES = 60
"""Classes up to which matplotlib draws the names in scripts that Pillow's font lacks."""


def write_curves(history: Sequence[Epoch], file: Path) -> Path:
    """Draw loss and accuracy over the epochs as PNG."""
    charts = []
    for quantity, title in (("loss", "Loss"), ("accuracy", "Accuracy")):
        lines = [
            Line(label, color, _points(history, f"{subset}_{quantity}"))
            for subset, label, color in (("train", "training", ORANGE), ("val", "validation", BLUE))
        ]
        charts.append((title, lines))
    with atomic_write(file) as temporary:
        draw_charts(temporary, charts)
    return file


def _points(history: Sequence[Epoch], name: str) -> list[tuple[float, float]]:
    values = ((float(epoch.epoch), getattr(epoch, name)) for epoch in history)
    return [(x, y) for x, y in values if y is not None and math.isfinite(y)]


def write_confusion(results: Results, file: Path) -> Path:
    """Draw the confusion matrix as PNG: counts, and normalized by row."""
    if all(map(is_drawable, results.classes)) or len(results.classes) > _MAX_CLASSES:
        with atomic_write(file) as temporary:
            names = {"val": "validation"}
            draw_confusion(temporary, results.classes, results.confusion, names.get(results.subset, results.subset))
        return file
    from inat_ft_figures.figures import draw_confusion as draw_with_all_fonts
    from inat_ft_figures.figures import plotting, save

    with plotting():
        figure = draw_with_all_fonts(results.classes, results.confusion)
    return save(figure, file.with_suffix(""))[0]
