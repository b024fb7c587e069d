"""The figure of accuracy against the share of images that are accepted."""

from __future__ import annotations

from pathlib import Path

from inat_ft_figures.figures import BLUE, GREY, ORANGE, new_figure, plotting, save

from inat_ft.metrics.base import Predictions
from inat_ft_conformal.assessment import Assessment
from inat_ft_conformal.selective import risk_coverage


def draw_curves(validation: Predictions, test: Predictions, found: Assessment, folder: Path) -> list[Path]:
    """Draw the curves of both subsets as PNG and SVG, with the target accuracies, and return the files."""
    with plotting():
        figure, axes = new_figure(6.4, 3.8)
        for predictions, color, dash, label in ((validation, GREY, "--", "validation"), (test, BLUE, "-", "test")):
            curve = risk_coverage(predictions)
            axes.plot(curve.share, curve.accuracy, color=color, linestyle=dash, label=f"{label} images")
        marks = [each for each in found.selections if each.confidence is not None and each.share.value]
        places = [(each.share.value, each.reached.value) for each in marks]
        axes.plot(*zip(*places, strict=True) if places else ([], []), "o", color=ORANGE, label="target accuracy")
        for each, place in zip(marks, places, strict=True):
            axes.annotate(f"{each.accuracy:.0%}", place, (0, 8), textcoords="offset points", ha="center")
        low = min([float(risk_coverage(test).accuracy[-1]), *(y for _, y in places)])
        axes.set(xlim=(-0.02, 1.04), ylim=(low - 0.25 * (1 - low) - 0.005, 1 + 0.08 * (1 - low) + 0.002))
        axes.set(xlabel="Share of images without review", ylabel="Accuracy on these images")
        axes.legend(frameon=False, loc="lower left")
    return save(figure, folder / "risk-coverage-test")
