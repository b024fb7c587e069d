"""The figures of an evaluation, and plotting: one style, fonts for all scripts, and files as PNG and SVG."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inat_ft.evaluation.predictions import confusion
from inat_ft.metrics.base import Predictions
from inat_ft.metrics.builtin import proportion
from inat_ft.records import atomic_write

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
"""Of Okabe and Ito's palette, which is safe for color-blind readers."""

_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names can contain dollars
    "svg.hashsalt": "inat-ft",
    "svg.fonttype": "none",
}
_FONT = "DejaVu Sans"
_NUM_IMAGES = 30
_MAX_NAMES = 100
"""Classes up to which a confusion matrix has names."""
_MAX_BARS = 60
"""Classes in the chart of recall by class."""
_warned: list[str] = []


@contextmanager
def plotting() -> Iterator[Any]:
    """Use the style of this project in matplotlib, without a display."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # see _use_fonts
        yield mpl


def new_figure(width: float, height: float, **grid: Any) -> tuple[Any, Any]:
    """Return a figure of that size in inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def shorten(name: str, limit: int = 32) -> str:
    """Return a name for a figure: of a long one, the beginning and the end, which tell runs and subspecies apart."""
    half = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[: limit - 1 - half].rstrip()}…{name[-half:].lstrip()}"


def logarithmic(axes: Any, which: str = "x") -> None:
    """Make an axis logarithmic with plain numbers as labels. Call it after drawing, since it uses the axis limits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    if high < 5 * low:
        axis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Any, stem: Path, dpi: int = 150) -> list[Path]:
    """Write stem.png and stem.svg, atomically."""
    files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    _use_fonts(figure)
    for file in files:
        options: dict[str, Any] = {"dpi": dpi} if file.suffix == ".png" else {"metadata": {"Date": None}}
        with plotting(), atomic_write(file) as temporary:
            figure.savefig(temporary, format=file.suffix[1:], **options)
    return files


def inline(figure: Any) -> str:
    """Return a figure as a data URL, SVG."""
    out = BytesIO()
    _use_fonts(figure)
    with plotting():
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def draw_plots(p: Predictions, folder: Path, subset: str, root: Path) -> list[Path]:
    """Draw all figures of one evaluation as PNG and SVG, and return the files."""
    from inat_ft_figures.grids import draw_images

    with plotting():
        drawn = {"confusion": draw_confusion(p.classes, confusion(p)), "per_class": _per_class(p)}
        if p.probabilities is not None:
            drawn["reliability"] = _reliability(p, p.probabilities)
    files = [file for name, figure in drawn.items() for file in save(figure, folder / f"{name}-{subset}")]
    if p.probabilities is not None:
        stem = folder / f"mistakes-{subset}"
        files += draw_images(p, most_confident_mistakes(p), stem, root, "Most confident mistakes")
    title = f"{subset.capitalize()} images: true class, then prediction"
    return files + draw_images(p, sample_grid(p), folder / f"grid-{subset}", root, title)


def draw_confusion(classes: Sequence[str], table: NDArray[np.int64]) -> Any:
    """Draw a confusion matrix as counts and normalized by row. Many classes get small cells without numbers or names."""
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    cell = min(0.42, (16 if len(classes) <= _MAX_NAMES else 8) / len(classes))
    names = [shorten(name) for name in classes] if len(classes) <= _MAX_NAMES else []
    size = min(9.0, 60 * cell)  # of the names, in points
    side = 1 + max(3.2, cell * len(classes)) + 0.009 * size * max(map(len, names), default=0)
    figure, (left, right) = new_figure(2 * side + 0.4, side, ncols=2)
    for axes, title in ((left, f"Counts, {int(table.sum()):,} images"), (right, "Normalized by row (recall), in %")):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if names:
            turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
            axes.set_xticks(range(len(names)), names, fontsize=size, **turn)
            axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set(xlabel="Predicted class", ylabel="True class", title=title)
    for row, column in np.argwhere(table).tolist() if cell > 0.2 else ():
        style = {"ha": "center", "va": "center", "fontsize": min(8.0, 24 * cell)}
        style["color"] = "white" if shares[row, column] > 0.55 else "black"
        left.text(column, row, table[row, column], **style)
        right.text(column, row, f"{100 * shares[row, column]:.0f}", **style)
    return figure


def _per_class(p: Predictions) -> Any:
    counts = np.bincount(p.true, minlength=len(p.classes))
    hits = np.bincount(p.true[p.correct], minlength=len(p.classes))
    tested = [label for label in np.argsort(hits / np.maximum(counts, 1), kind="stable") if counts[label]]
    shown = tested[:_MAX_BARS]
    found = [proportion(int(hits[label]), int(counts[label])) for label in shown]
    figure, axes = new_figure(6.4, 1.4 + 0.28 * len(shown))
    errors = [[m.value - (m.low or 0) for m in found], [(m.high or 0) - m.value for m in found]]
    axes.barh(range(len(shown)), [m.value for m in found], xerr=errors, color=BLUE, ecolor=ORANGE, capsize=2)
    axes.set_yticks(range(len(shown)), [f"{shorten(p.classes[label])} ({counts[label]})" for label in shown])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    title = "Recall by class" if len(shown) == len(tested) else f"Lowest recall of {len(tested):,} classes"
    axes.set(xlim=(0, 1), xlabel="Recall, with 95% interval", title=f"{title} (number of images)")
    return figure


def _reliability(p: Predictions, probabilities: NDArray[np.float64], bins: int = 10) -> Any:
    """Draw accuracy against confidence in bins of about equal size, with the number of images of each."""
    confidence = probabilities.max(1)
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    mean = [confidence[part].mean() for part in parts]
    accuracy = [p.correct[part].mean() for part in parts]
    sizes = " or ".join(f"{size:,}" for size in sorted({len(part) for part in parts}))
    figure, (axes, lower) = new_figure(4.6, 5.4, nrows=2, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="Perfect calibration")
    axes.plot(mean, accuracy, color=BLUE, marker="o", label=f"This model, in bins of {sizes} images")
    limits = (-0.02, 1.02)
    axes.set(xlim=limits, ylim=limits, ylabel="Accuracy")
    axes.set_title("Reliability diagram", pad=34)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
    lower.hist(confidence, bins=np.linspace(0, 1, 21), color=BLUE)
    lower.set(xlabel="Confidence", ylabel="Images")
    lower.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    return figure


def sample_grid(p: Predictions) -> Sequence[int]:
    """Return thirty images, spread evenly over the classes, the same ones for every model on these images."""
    shuffled = np.random.default_rng(0).permutation(len(p))
    turn = np.zeros(len(p), np.int64)
    for label in range(len(p.classes)):
        of_class = p.true[shuffled] == label
        turn[of_class] = np.arange(of_class.sum())
    order = shuffled[np.argsort(turn, kind="stable")][:_NUM_IMAGES]
    return list(order[np.argsort(p.true[order], kind="stable")])


def most_confident_mistakes(p: Predictions) -> Sequence[int]:
    """Return the thirty mistakes with the highest probability, most probable first."""
    wrong = np.flatnonzero(~p.correct)
    confidence = p.require_probabilities()[wrong, p.predicted[wrong]]
    return list(wrong[np.argsort(-confidence, kind="stable")][:_NUM_IMAGES])


def _use_fonts(figure: Any) -> None:
    """Give the texts of a figure fonts that have their characters, such as Chinese, Japanese or Arabic names.

    Warn once per process about characters that no installed font has; they are drawn as boxes.
    """
    from matplotlib import font_manager
    from matplotlib.text import Text

    texts, fonts = figure.findobj(Text), [_FONT]
    missing = {c for text in texts for c in text.get_text() if ord(c) > 127 and c.isprintable()}
    missing -= _characters(font_manager.findfont(_FONT))
    for entry in font_manager.fontManager.ttflist if missing else ():
        if entry.style == "normal" and entry.name not in fonts and missing & _characters(entry.fname):
            missing -= _characters(entry.fname)
            fonts.append(entry.name)
    if len(fonts) > 1:
        for text in texts:
            text.set_fontfamily(fonts)
    if missing and not _warned:
        some = "".join(sorted(missing)[:5])
        _warned.append(f"no installed font has {some}: these characters are drawn as boxes in figures")
        warnings.warn(f"{_warned[0]}; install a font such as Noto Sans CJK", stacklevel=2)


@cache
def _characters(font: str) -> frozenset[str]:
    """Return the characters that a font file has glyphs for; empty when it cannot be read, or draws only boxes."""
    from matplotlib.ft2font import FT2Font

    if "LastResort" in font:  # matplotlib's own, for characters that no other font has
        return frozenset()
    try:
        return frozenset(map(chr, FT2Font(font).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
