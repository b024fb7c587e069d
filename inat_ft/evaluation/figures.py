"""Figures in one house style: colours that everybody can tell apart, PNG for eyes and SVG for papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.metrics import confusion
from inat_ft.evaluation.predictions import Predictions
from inat_ft.records import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
"""Of Okabe and Ito's palette, which colour-blind people can tell apart."""

_ROWS, _COLUMNS = 10, 3
_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a name may hold dollars
    "svg.hashsalt": "inat-ft",
    "svg.fonttype": "none",
}


def draw_figures(predictions: Predictions, folder: Path, subset: str, root: Path) -> list[Path]:
    """All figures of one evaluation, as PNG and SVG; returns the files."""
    drawn: dict[str, Figure] = {"confusion": _confusion(predictions), "per_class": _per_class(predictions)}
    if predictions.probabilities is not None:
        drawn["reliability"] = _reliability(predictions)
        drawn["mistakes"] = _pictures(predictions, worst(predictions), root, "Most confident mistakes")
    drawn["grid"] = _pictures(predictions, sample(predictions), root, f"{subset} images: true class, then prediction")
    return [file for name, figure in drawn.items() for file in save(figure, folder / f"{name}-{subset}")]


@contextmanager
def plotting() -> Iterator[Any]:
    """matplotlib in the house style, without a screen."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield mpl


def new_figure(width: float, height: float, **grid: Any) -> tuple[Any, Any]:
    """A figure of that size in inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def logarithmic(axes: Any, which: str = "x") -> None:
    """Make an axis logarithmic, with plain numbers on it; after the drawing, since it looks at how far that goes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg, atomically."""
    files = []
    for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        file = stem.with_name(stem.name + suffix)
        with plotting(), replacing(file) as temporary:
            figure.savefig(temporary, format=suffix[1:], **options)
        files.append(file)
    return files


def _confusion(p: Predictions) -> Figure:
    table = confusion(p)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 2.2 + 0.42 * len(p.classes)
    with plotting():
        figure, axes = new_figure(side + 0.8, side)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row in range(len(p.classes)):
            for column in range(len(p.classes)):
                if table[row, column]:
                    colour = "white" if shares[row, column] > 0.55 else "black"
                    axes.text(column, row, table[row, column], ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(p.classes)), p.classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(p.classes)), p.classes)
        axes.set(xlabel="predicted", ylabel="true", title=f"Confusion, {len(p):,} images")
    return figure  # type: ignore[no-any-return]


def _per_class(p: Predictions) -> Figure:
    from inat_ft.evaluation.metrics import proportion

    counts = np.bincount(p.true, minlength=len(p.classes))
    right = np.bincount(p.true[p.correct], minlength=len(p.classes))
    shown = [label for label in np.argsort(right / np.maximum(counts, 1)) if counts[label]]
    found = [proportion(int(right[label]), int(counts[label])) for label in shown]
    with plotting():
        figure, axes = new_figure(6.4, 1.4 + 0.28 * len(shown))
        errors = [[m.value - (m.low or 0) for m in found], [(m.high or 0) - m.value for m in found]]
        axes.barh(range(len(shown)), [m.value for m in found], xerr=errors, color=BLUE, ecolor=ORANGE, capsize=2)
        axes.set_yticks(range(len(shown)), [f"{p.classes[label]} ({counts[label]})" for label in shown])
        axes.set(xlim=(0, 1), xlabel="share recognised, with 95 % interval", title="Recall by class")
    return figure  # type: ignore[no-any-return]


def _reliability(p: Predictions, bins: int = 10) -> Figure:
    assert p.probabilities is not None
    confidence = p.probabilities.max(1)
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    mean = [confidence[part].mean() for part in parts]
    right = [p.correct[part].mean() for part in parts]
    with plotting():
        figure, axes = new_figure(4.6, 4.4)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as right as it claims")
        axes.plot(mean, right, color=BLUE, marker="o", label="this network")
        axes.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            xlabel="confidence",
            ylabel="share that is right",
            title="Reliability",
        )
        axes.legend(frameon=False, loc="upper left")
    return figure  # type: ignore[no-any-return]


def sample(p: Predictions) -> Sequence[int]:
    """Thirty images, as evenly over the classes as they come, the same for every network on these images."""
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(p))
    turn = np.zeros(len(p), np.int64)
    for label in range(len(p.classes)):
        places = shuffled[p.true[shuffled] == label]
        turn[places] = np.arange(len(places))
    order = shuffled[np.argsort(turn[shuffled], kind="stable")][: _ROWS * _COLUMNS]
    chosen: list[int] = order[np.argsort(p.true[order], kind="stable")].tolist()
    return chosen


def worst(p: Predictions) -> Sequence[int]:
    """The thirty mistakes with the highest probability, most probable first."""
    assert p.probabilities is not None
    wrong = np.flatnonzero(~p.correct)
    confidence = p.probabilities[wrong, p.predicted[wrong]]
    chosen: list[int] = wrong[np.argsort(-confidence, kind="stable")][: _ROWS * _COLUMNS].tolist()
    return chosen


def draw_overlays(
    p: Predictions, places: Sequence[int], maps: NDArray[np.float32], stem: Path, root: Path, title: str
) -> list[Path]:
    """The images at `places` with what spoke for their predictions laid over, `maps` `[N, S, S]` 0..1, as PNG and SVG."""
    return save(_pictures(p, places, root, title, maps), stem)


def _pictures(
    p: Predictions, places: Sequence[int], root: Path, title: str, maps: NDArray[np.float32] | None = None
) -> Figure:
    """A 10 x 3 grid of images; a tick or a cross says beside the colour whether the prediction is right."""
    from inat_ft.data.images import load_image

    rows = max(1, -(-len(places) // _COLUMNS))
    with plotting():
        figure, grid = new_figure(_COLUMNS * 2.3, 0.6 + rows * 2.1, nrows=rows, ncols=_COLUMNS, squeeze=False)
        figure.suptitle(title if places else f"{title}: none", fontweight="bold", fontsize=11)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, (axes, place) in enumerate(zip(grid.flat, places, strict=False)):
            axes.imshow(load_image(root / p.paths[place], 160), extent=(0, 1, 0, 1))
            if maps is not None:
                heat = {"cmap": "inferno", "alpha": 0.5, "vmin": 0, "vmax": 1, "interpolation": "bicubic"}
                axes.imshow(maps[number], extent=(0, 1, 0, 1), **heat)
            right = p.correct[place]
            sure = f" ({p.probabilities[place, p.predicted[place]]:.0%})" if p.probabilities is not None else ""
            text = f"{p.classes[p.true[place]]}\n{'✓' if right else '✗'} {p.classes[p.predicted[place]]}{sure}"
            axes.set_title(text, fontsize=8, color=GREEN if right else ORANGE, loc="center", fontweight="normal")
    return figure  # type: ignore[no-any-return]
