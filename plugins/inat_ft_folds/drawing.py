"""The figure of a cross-validation."""

from __future__ import annotations

from pathlib import Path

from inat_ft_figures.figures import BLUE, GREY, ORANGE, new_figure, plotting, save

from inat_ft_folds.result import Spread


def draw_folds(accuracy: Spread, stem: Path) -> Path:
    """Draw the accuracy of each fold, and mean and standard deviation, as PNG and SVG. Return the PNG."""
    folds = range(1, len(accuracy.values) + 1)
    low, high = accuracy.mean - accuracy.deviation, accuracy.mean + accuracy.deviation
    with plotting():
        from matplotlib.ticker import MaxNLocator

        figure, axes = new_figure(6.4, 3.4)
        axes.axhspan(
            low, high, color=ORANGE, alpha=0.2, linewidth=0, label=f"standard deviation {accuracy.deviation:.4f}"
        )
        axes.axhline(accuracy.mean, color=ORANGE, linestyle="--", label=f"mean {accuracy.mean:.4f}")
        axes.vlines(folds, accuracy.mean, accuracy.values, color=GREY, linewidth=1)
        axes.plot(folds, accuracy.values, "o", color=BLUE, label="held-out images of one fold")
        axes.set(xlabel="Fold", ylabel="Accuracy on held-out images", xlim=(0.5, len(folds) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3)
    return save(figure, stem)[0]
