"""The files of a learning curve: a CSV of its points, and a picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from inat_ft_figures.figures import BLUE, GREY, ORANGE, logarithmic, new_figure, plotting, save

from inat_ft.evaluation.predictions import write_csv
from inat_ft_insights.learning_curve import LearningCurve

_FARTHEST = 64
"""Multiple of the measured size up to which the picture follows a target."""


def write_points(curve: LearningCurve, file: Path) -> None:
    """Write the points as CSV."""
    rows = [point.to_dict() for point in curve.points]
    write_csv(file, list(rows[0]), (list(row.values()) for row in rows))


def draw_curve(curve: LearningCurve, stem: Path) -> Path:
    """Draw the curve as PNG and SVG, and return the PNG."""
    measured = [point for point in curve.points if point.kind == "measured"]
    sizes = [point.images_per_class for point in measured]
    values = np.array([[point.accuracy.value, point.accuracy.low, point.accuracy.high] for point in measured]).T
    with plotting():
        figure, axes = new_figure(6.4, 3.8)
        if curve.law is not None:
            last, needed = sizes[-1], curve.needed.value if curve.needed else math.inf
            end = max(8 * last, min(1.5 * needed, _FARTHEST * last)) if math.isfinite(needed) else 8 * last
            grid = np.geomspace(sizes[0], end, 80)
            line = [curve.law.accuracy(size) for size in grid]
            low, high = [each.low for each in line], [each.high for each in line]
            axes.fill_between(grid, low, high, color=ORANGE, alpha=0.2, linewidth=0, label="95% interval")
            axes.plot(grid, [each.value for each in line], color=ORANGE, linestyle="--", label="power law")
        errors = np.abs(values[1:] - values[0])
        axes.errorbar(sizes, values[0], errors, fmt="o", color=BLUE, capsize=2, label=f"measured, {curve.draws} draws")
        if curve.target is not None:
            axes.axhline(curve.target, color=GREY, linestyle=":", label=f"target {curve.target:g}")
        axes.set(xlabel="Training images per class (logarithmic)", ylabel="Accuracy on the validation images")
        logarithmic(axes)
        axes.legend(frameon=False, loc="lower right")
    return save(figure, stem)[0]
