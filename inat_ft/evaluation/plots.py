"""The figures of one evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.figures import BLUE, GREEN, GREY, ORANGE, new_figure, plotting, save
from inat_ft.evaluation.scores import confusion
from inat_ft.metrics.predictions import Predictions
from inat_ft.metrics.proportions import proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _COLUMNS = 10, 3
_IMAGES_DPI = 110


def draw_plots(p: Predictions, folder: Path, subset: str, root: Path) -> list[Path]:
    """Draw all figures of one evaluation as PNG and SVG, and return the files."""
    with plotting():
        drawn: dict[str, Figure] = {"confusion": _confusion(p), "per_class": _per_class(p)}
        if p.probabilities is not None:
            drawn["reliability"] = _reliability(p, p.probabilities)
    files = [file for name, figure in drawn.items() for file in save(figure, folder / f"{name}-{subset}")]
    if p.probabilities is not None:
        stem = folder / f"mistakes-{subset}"
        files += draw_images(p, most_confident_mistakes(p), stem, root, "Most confident mistakes")
    title = f"{subset} images: true class, then prediction"
    return files + draw_images(p, sample_grid(p), folder / f"grid-{subset}", root, title)


def _confusion(p: Predictions) -> Figure:
    table = confusion(p)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 2.2 + 0.42 * len(p.classes)
    figure, (left, right) = new_figure(2 * side + 0.8, side, ncols=2)
    for axes, title in ((left, f"Confusion matrix, {len(p):,} images"), (right, "Normalized by row (recall), in %")):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(p.classes)), p.classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(p.classes)), p.classes)
        axes.set(xlabel="Predicted class", ylabel="True class", title=title)
    for row, column in np.argwhere(table).tolist():
        style = {"ha": "center", "va": "center", "fontsize": 8}
        style["color"] = "white" if shares[row, column] > 0.55 else "black"
        left.text(column, row, table[row, column], **style)
        right.text(column, row, f"{100 * shares[row, column]:.0f}", **style)
    return figure  # type: ignore[no-any-return]


def _per_class(p: Predictions) -> Figure:
    counts = np.bincount(p.true, minlength=len(p.classes))
    hits = np.bincount(p.true[p.correct], minlength=len(p.classes))
    shown = [label for label in np.argsort(hits / np.maximum(counts, 1)) if counts[label]]
    found = [proportion(int(hits[label]), int(counts[label])) for label in shown]
    figure, axes = new_figure(6.4, 1.4 + 0.28 * len(shown))
    errors = [[m.value - (m.low or 0) for m in found], [(m.high or 0) - m.value for m in found]]
    axes.barh(range(len(shown)), [m.value for m in found], xerr=errors, color=BLUE, ecolor=ORANGE, capsize=2)
    axes.set_yticks(range(len(shown)), [f"{p.classes[label]} ({counts[label]})" for label in shown])
    axes.set(xlim=(0, 1), xlabel="Recall, with 95 % interval", title="Recall by class (number of images)")
    return figure  # type: ignore[no-any-return]


def _reliability(p: Predictions, probabilities: NDArray[np.float64], bins: int = 10) -> Figure:
    confidence = probabilities.max(1)
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    mean = [confidence[part].mean() for part in parts]
    accuracy = [p.correct[part].mean() for part in parts]
    figure, axes = new_figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="Perfect calibration")
    axes.plot(mean, accuracy, color=BLUE, marker="o", label="This model (number of images)")
    limits = (-0.02, 1.02)
    axes.set(xlim=limits, ylim=limits, xlabel="Confidence", ylabel="Accuracy", title="Reliability diagram")
    for x, y, part in zip(mean, accuracy, parts, strict=True):
        axes.annotate(f"{len(part):,}", (x, y), (4, -9), textcoords="offset points", fontsize=7, color=GREY)
    axes.legend(frameon=False, loc="upper left")
    return figure  # type: ignore[no-any-return]


def sample_grid(p: Predictions) -> Sequence[int]:
    """Return thirty images, spread evenly over the classes, the same ones for every model on these images."""
    shuffled = np.random.default_rng(0).permutation(len(p))
    turn = np.zeros(len(p), np.int64)
    for label in range(len(p.classes)):
        places = shuffled[p.true[shuffled] == label]
        turn[places] = np.arange(len(places))
    order = shuffled[np.argsort(turn[shuffled], kind="stable")][: _ROWS * _COLUMNS]
    chosen: list[int] = order[np.argsort(p.true[order], kind="stable")].tolist()
    return chosen


def most_confident_mistakes(p: Predictions) -> Sequence[int]:
    """Return the thirty mistakes with the highest probability, most probable first."""
    wrong = np.flatnonzero(~p.correct)
    confidence = p.require_probabilities()[wrong, p.predicted[wrong]]
    chosen: list[int] = wrong[np.argsort(-confidence, kind="stable")][: _ROWS * _COLUMNS].tolist()
    return chosen


def draw_images(
    p: Predictions, rows: Sequence[int], stem: Path, root: Path, title: str, maps: NDArray[np.float32] | None = None
) -> list[Path]:
    """Draw a grid of images with their classes as PNG and SVG.

    maps: class activation maps `[N, S, S]` from 0 to 1, drawn beside each image.
    """
    lines = max(1, -(-len(rows) // _COLUMNS))
    with plotting():
        width = _COLUMNS * (2.0 if maps is None else 3.4)
        figure, grid = new_figure(width, 0.6 + lines * 1.65, nrows=lines, ncols=_COLUMNS, squeeze=False)
        figure.suptitle(title if rows else f"{title}: none", fontweight="bold", fontsize=11)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, (axes, row) in enumerate(zip(grid.flat, rows, strict=False)):
            _draw_image(axes, p, row, root, None if maps is None else maps[number])
    return save(figure, stem, _IMAGES_DPI)


def _draw_image(axes: Any, p: Predictions, row: int, root: Path, heat: NDArray[np.float32] | None) -> None:
    from inat_ft.images.decode import load_image

    image = load_image(root / p.paths[row], 160)
    axes.imshow(image, extent=(0, 1, 0, 1))
    if heat is not None:
        axes.imshow(image, extent=(1.04, 2.04, 0, 1))
        style = {"cmap": "inferno", "alpha": 0.5, "vmin": 0, "vmax": 1, "interpolation": "bicubic"}
        axes.imshow(heat, extent=(1.04, 2.04, 0, 1), **style)
        axes.set_xlim(0, 2.04)
    correct = p.correct[row]
    confidence = f" ({p.probabilities[row, p.predicted[row]]:.0%})" if p.probabilities is not None else ""
    text = f"{p.classes[p.true[row]]}\n{'✓' if correct else '✗'} {p.classes[p.predicted[row]]}{confidence}"
    axes.set_title(text, fontsize=8, color=GREEN if correct else ORANGE, loc="center", fontweight="normal")
