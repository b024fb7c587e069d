"""The figure of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inat_ft.evaluation.figures import BLUE, GREY, ORANGE, logarithmic, new_figure, plotting, save


def draw_lr_range(
    lrs: Sequence[float], losses: Sequence[float], smooth: Sequence[float], suggestion: float | None, stem: Path
) -> Path:
    """Draw the measured and smoothed loss against the learning rate as PNG and SVG, and return the PNG."""
    with plotting():
        figure, axes = new_figure(6.4, 3.6)
        axes.plot(lrs, losses, ".", color=GREY, markersize=3, label="Each step")
        axes.plot(lrs, smooth, color=BLUE, label="Smoothed")
        if suggestion is not None:
            axes.axvline(suggestion, color=ORANGE, linestyle="--", label=f"Suggestion: {suggestion:.1e}")
        finite = np.array(losses)[np.isfinite(losses)]
        axes.set(xlabel="Learning rate (logarithmic)", ylabel="Training loss in nats")
        logarithmic(axes)
        axes.set_ylim(0.9 * finite.min(), 1.1 * max(2 * losses[0], finite.min()))
        axes.legend(frameon=False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, stem)[0]
