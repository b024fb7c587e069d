"""The figures of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.compare import Comparison
from inat_ft.evaluation.figures import BLUE, GREEN, GREY, ORANGE, logarithmic, new_figure, plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")


def draw_charts(comparison: Comparison) -> dict[str, tuple[Figure, str]]:
    """Return every figure that the records allow, by name, with its caption."""
    candidates, label = comparison.candidates, comparison.scored_by.label
    curves = [c for c in candidates if len(c.record.history) > 1]
    costs = [c for c in candidates if c.score and c.record.seconds.get("total")]
    tested = [c for c in candidates if c.predictions]
    with plotting():
        found = {"scores": (_scores(candidates, label), f"{label} of each classifier, with its 95 % interval")}
        if curves:
            found["curves"] = (_curves(curves), "accuracy on the validation images after each epoch")
        if len(costs) > 1:
            found["cost"] = (_cost(costs, label), f"{label} against training time")
        if len(tested) > 1 and set(tested[0].predictions[0].classes) == set(tested[1].predictions[0].classes):
            first, second = tested[:2]
            found["classes"] = (_classes(first, second), f"recall by class, {first.name} minus {second.name}")
    return found


def _scores(candidates: list[Candidate], label: str) -> Figure:
    scored = [(candidate.name, candidate.score) for candidate in reversed(candidates) if candidate.score]
    figure, axes = new_figure(6.4, 1.3 + 0.4 * len(scored))
    for place, (_, score) in enumerate(scored):
        if score.low is not None and score.high is not None:
            axes.plot([score.low, score.high], [place, place], color=GREY, linewidth=2, solid_capstyle="butt")
        axes.plot(score.value, place, "o", color=BLUE, markersize=7)
        axes.annotate(f"{score.value:.4f}", (score.value, place), (0, 7), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(scored)), [name for name, _ in scored])
    axes.set_ylim(-0.6, len(scored) - 0.3)
    axes.set_xlabel(_capitalized(label))
    return figure  # type: ignore[no-any-return]


def _curves(candidates: list[Candidate]) -> Figure:
    figure, axes = new_figure(6.4, 3.6)
    for number, candidate in enumerate(candidates):
        epochs = [epoch.epoch for epoch in candidate.record.history]
        values = [np.nan if e.val_accuracy is None else e.val_accuracy for e in candidate.record.history]
        color, dash = _COLORS[number % len(_COLORS)], _DASHES[number % len(_DASHES)]
        axes.plot(epochs, values, color=color, linestyle=dash, marker="o", markersize=3, label=candidate.name)
    axes.set(xlabel="Epoch", ylabel="Validation accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure  # type: ignore[no-any-return]


def _cost(candidates: list[Candidate], label: str) -> Figure:
    figure, axes = new_figure(6.4, 3.6)
    for candidate in candidates:
        point = (candidate.record.seconds["total"], candidate.score.value if candidate.score else np.nan)
        axes.plot(*point, "o", color=BLUE)
        axes.annotate(candidate.name, point, (6, 4), textcoords="offset points")
    axes.set(xlabel="Training time in seconds (logarithmic)", ylabel=_capitalized(label), xscale="log")
    axes.margins(x=0.25, y=0.2)
    logarithmic(axes)
    return figure  # type: ignore[no-any-return]


def _classes(first: Candidate, second: Candidate) -> Figure:
    names = first.predictions[0].classes
    difference = np.array([_recall(first, name) - _recall(second, name) for name in names])
    order = np.argsort(difference)
    figure, axes = new_figure(6.4, 1.3 + 0.28 * len(names))
    colors = [BLUE if difference[place] >= 0 else ORANGE for place in order]
    axes.barh(range(len(names)), difference[order], color=colors)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(names)), [names[place] for place in order])
    axes.set_xlabel(f"Recall: {first.name} minus {second.name}")
    return figure  # type: ignore[no-any-return]


def _recall(candidate: Candidate, name: str) -> float:
    predictions = candidate.predictions[0]
    of_class = predictions.true == predictions.classes.index(name)
    return float(predictions.correct[of_class].mean()) if of_class.any() else 0.0


def _capitalized(label: str) -> str:
    return label[:1].upper() + label[1:]
