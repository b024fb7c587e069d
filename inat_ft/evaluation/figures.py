"""Figures in one house style: colours that everybody can tell apart, PNG for eyes and SVG for papers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.metrics import confusion
from inat_ft.evaluation.predictions import Predictions
from inat_ft.records import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
"""Of Okabe and Ito's palette, which colour-blind people can tell apart."""

_ROWS, _COLUMNS = 10, 3
_PICTURES_DPI = 110
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
        drawn["mistakes"] = _pictures(
            predictions, most_confident_mistakes(predictions), root, "Most confident mistakes"
        )
    drawn["grid"] = _pictures(
        predictions, sample_grid(predictions), root, f"{subset} images: true class, then prediction"
    )
    dpi = {"mistakes": _PICTURES_DPI, "grid": _PICTURES_DPI}
    return [
        file for name, figure in drawn.items() for file in save(figure, folder / f"{name}-{subset}", dpi.get(name, 150))
    ]


@contextmanager
def plotting() -> Iterator[Any]:
    """matplotlib in the house style, without a screen."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # said once, below
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


def use_fonts_for_all_text(figure: Figure) -> None:
    """Give each text of a figure fonts that hold its characters, such as Chinese, Japanese or Arabic names.

    Warn once per process about characters that no installed font has; they are drawn as boxes.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        fonts = _fonts_for(text.get_text())
        if len(fonts) > 1:
            text.set_fontfamily(list(fonts))


@cache
def _fonts_for(text: str) -> tuple[str, ...]:
    """Return font families that together hold the characters of a text; the default one first."""
    from matplotlib import font_manager

    missing, fonts = {c for c in text if ord(c) > 127 and c.isprintable()}, ["DejaVu Sans"]
    missing -= _characters(font_manager.findfont("DejaVu Sans"))
    for entry in font_manager.fontManager.ttflist if missing else ():
        if missing and entry.style == "normal" and entry.name not in fonts and missing & _characters(entry.fname):
            missing -= _characters(entry.fname)
            fonts.append(entry.name)
    if missing:
        _warn_once(
            f"no installed font has {''.join(sorted(missing)[:5])}: these characters are drawn as boxes in figures"
        )
    return tuple(fonts)


@cache
def _characters(font: str) -> frozenset[str]:
    """Return the characters that a font file has glyphs for; empty when it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(font).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


_warned: list[str] = []


def _warn_once(message: str) -> None:
    if not _warned:
        _warned.append(message)
        warnings.warn(f"{message}; install a font such as Noto Sans CJK", stacklevel=2)


def save(figure: Figure, stem: Path, dpi: int = 150) -> list[Path]:
    """Write stem.png and stem.svg, atomically."""
    files = []
    use_fonts_for_all_text(figure)
    for suffix, options in ((".png", {"dpi": dpi}), (".svg", {"metadata": {"Date": None}})):
        file = stem.with_name(stem.name + suffix)
        with plotting(), atomic_write(file) as temporary:
            figure.savefig(temporary, format=suffix[1:], **options)
        files.append(file)
    return files


def _confusion(p: Predictions) -> Figure:
    table = confusion(p)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 2.2 + 0.42 * len(p.classes)
    with plotting():
        figure, (left, right) = new_figure(2 * side + 0.8, side, ncols=2)
        for axes, title in ((left, f"Confusion matrix, {len(p):,} images"), (right, "Row-normalized (recall), in %")):
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            axes.set_xticks(range(len(p.classes)), p.classes, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(p.classes)), p.classes)
            axes.set(xlabel="predicted", ylabel="true", title=title)
        for row, column in np.argwhere(table).tolist():
            style = {"ha": "center", "va": "center", "fontsize": 8}
            style["color"] = "white" if shares[row, column] > 0.55 else "black"
            left.text(column, row, table[row, column], **style)
            right.text(column, row, f"{100 * shares[row, column]:.0f}", **style)
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
        axes.set(xlim=(0, 1), xlabel="recall, with 95 % interval", title="Per-class recall")
    return figure  # type: ignore[no-any-return]


def _reliability(p: Predictions, bins: int = 10) -> Figure:
    assert p.probabilities is not None
    confidence = p.probabilities.max(1)
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    mean = [confidence[part].mean() for part in parts]
    right = [p.correct[part].mean() for part in parts]
    with plotting():
        figure, axes = new_figure(4.6, 4.4)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
        axes.plot(mean, right, color=BLUE, marker="o", label="this network (number of images)")
        axes.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            xlabel="confidence",
            ylabel="accuracy",
            title="Reliability",
        )
        for x, y, part in zip(mean, right, parts, strict=True):
            axes.annotate(f"{len(part):,}", (x, y), (4, -9), textcoords="offset points", fontsize=7, color=GREY)
        axes.legend(frameon=False, loc="upper left")
    return figure  # type: ignore[no-any-return]


def sample_grid(p: Predictions) -> Sequence[int]:
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


def most_confident_mistakes(p: Predictions) -> Sequence[int]:
    """The thirty mistakes with the highest probability, most probable first."""
    assert p.probabilities is not None
    wrong = np.flatnonzero(~p.correct)
    confidence = p.probabilities[wrong, p.predicted[wrong]]
    chosen: list[int] = wrong[np.argsort(-confidence, kind="stable")][: _ROWS * _COLUMNS].tolist()
    return chosen


def draw_overlays(
    p: Predictions, places: Sequence[int], maps: NDArray[np.float32], stem: Path, root: Path, title: str
) -> list[Path]:
    """Draw the images at `places` beside their class activation maps, `maps` `[N, S, S]` in 0..1, as PNG and SVG."""
    return save(_pictures(p, places, root, title, maps), stem, _PICTURES_DPI)


def _pictures(
    p: Predictions, places: Sequence[int], root: Path, title: str, maps: NDArray[np.float32] | None = None
) -> Figure:
    """Draw a 10 x 3 grid of images with their classes; with `maps`, each image beside its class activation map."""
    from inat_ft.images.decode import load_image

    rows = max(1, -(-len(places) // _COLUMNS))
    with plotting():
        width = _COLUMNS * (2.0 if maps is None else 3.4)
        figure, grid = new_figure(width, 0.6 + rows * 1.65, nrows=rows, ncols=_COLUMNS, squeeze=False)
        figure.suptitle(title if places else f"{title}: none", fontweight="bold", fontsize=11)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, (axes, place) in enumerate(zip(grid.flat, places, strict=False)):
            image = load_image(root / p.paths[place], 160)
            axes.imshow(image, extent=(0, 1, 0, 1))
            if maps is not None:
                heat = {"cmap": "inferno", "alpha": 0.5, "vmin": 0, "vmax": 1, "interpolation": "bicubic"}
                axes.imshow(image, extent=(1.04, 2.04, 0, 1))
                axes.imshow(maps[number], extent=(1.04, 2.04, 0, 1), **heat)
                axes.set_xlim(0, 2.04)
            right = p.correct[place]
            sure = f" ({p.probabilities[place, p.predicted[place]]:.0%})" if p.probabilities is not None else ""
            text = f"{p.classes[p.true[place]]}\n{'✓' if right else '✗'} {p.classes[p.predicted[place]]}{sure}"
            axes.set_title(text, fontsize=8, color=GREEN if right else ORANGE, loc="center", fontweight="normal")
    return figure  # type: ignore[no-any-return]
