"""The pictures of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.compare import Comparison
from inat_ft.evaluation.figures import BLUE, GREEN, GREY, ORANGE, logarithmic, new_figure, plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")


def draw_charts(comparison: Comparison) -> dict[str, tuple[Figure, str]]:
    """Every figure that the records allow, by name, with a sentence that says what it shows."""
    found = {
        "scores": (_scores(comparison), f"{comparison.metric.replace('_', ' ')} of each, with its 95 % interval"),
    }
    curves = [candidate for candidate in comparison.candidates if len(candidate.record.history) > 1]
    if curves:
        found["curves"] = (_curves(curves), "accuracy on the validation images after each epoch")
    costs = [
        candidate for candidate in comparison.candidates if candidate.score and candidate.record.seconds.get("total")
    ]
    if len(costs) > 1:
        found["cost"] = (
            _cost(costs, comparison.metric),
            f"{comparison.metric.replace('_', ' ')} against training time",
        )
    with_images = [candidate for candidate in comparison.candidates if candidate.predictions]
    if len(with_images) > 1 and set(with_images[0].predictions[0].classes) == set(
        with_images[1].predictions[0].classes
    ):
        first, second = with_images[:2]
        found["classes"] = (_classes(first, second), f"recall by class, {first.name} minus {second.name}")
    return found


def _scores(comparison: Comparison) -> Figure:
    candidates = [candidate for candidate in reversed(comparison.candidates) if candidate.score]
    with plotting():
        figure, axes = new_figure(6.4, 1.3 + 0.4 * len(candidates))
        for place, candidate in enumerate(candidates):
            score = candidate.score
            assert score is not None
            if score.low is not None and score.high is not None:
                axes.plot([score.low, score.high], [place, place], color=GREY, linewidth=2, solid_capstyle="butt")
            axes.plot(score.value, place, "o", color=BLUE, markersize=7)
            axes.annotate(f"{score.value:.4f}", (score.value, place), (0, 7), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(candidates)), [candidate.name for candidate in candidates])
        axes.set_ylim(-0.6, len(candidates) - 0.3)
        axes.set_xlabel(comparison.metric.replace("_", " "))
    return figure  # type: ignore[no-any-return]


def _curves(candidates: list[Candidate]) -> Figure:
    with plotting():
        figure, axes = new_figure(6.4, 3.6)
        for number, candidate in enumerate(candidates):
            epochs = [epoch.epoch for epoch in candidate.record.history]
            values = [np.nan if e.val_accuracy is None else e.val_accuracy for e in candidate.record.history]
            colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
            axes.plot(epochs, values, color=colour, linestyle=dash, marker="o", markersize=3, label=candidate.name)
        axes.set(xlabel="epoch", ylabel="validation accuracy")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return figure  # type: ignore[no-any-return]


def _cost(candidates: list[Candidate], metric: str) -> Figure:
    with plotting():
        figure, axes = new_figure(6.4, 3.6)
        for candidate in candidates:
            assert candidate.score is not None
            seconds = candidate.record.seconds["total"]
            axes.plot(seconds, candidate.score.value, "o", color=BLUE)
            axes.annotate(candidate.name, (seconds, candidate.score.value), (6, 4), textcoords="offset points")
        axes.set(xlabel="training time in seconds (logarithmic)", ylabel=metric.replace("_", " "), xscale="log")
        axes.margins(x=0.25, y=0.2)
        logarithmic(axes)
    return figure  # type: ignore[no-any-return]


def _classes(first: Candidate, second: Candidate) -> Figure:
    names = first.predictions[0].classes
    difference = np.array([_recall(first, name) - _recall(second, name) for name in names])
    order = np.argsort(difference)
    with plotting():
        figure, axes = new_figure(6.4, 1.3 + 0.28 * len(names))
        colours = [BLUE if difference[place] >= 0 else ORANGE for place in order]
        axes.barh(range(len(names)), difference[order], color=colours)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(len(names)), [names[place] for place in order])
        axes.set_xlabel(f"recall: {first.name} minus {second.name}")
    return figure  # type: ignore[no-any-return]


def _recall(candidate: Candidate, name: str) -> float:
    predictions = candidate.predictions[0]
    label = predictions.classes.index(name)
    of_class = predictions.true == label
    return float(predictions.correct[of_class].mean()) if of_class.any() else 0.0
