"""Plotting: one style for all figures, fonts for all scripts, and files as PNG and SVG."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft.records import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@contextmanager
def plotting() -> Iterator[Any]:
    """Use the style of this project in matplotlib, without a display."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # see _warn_once
        yield mpl


def new_figure(width: float, height: float, **grid: Any) -> tuple[Any, Any]:
    """Return a figure of that size in inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def logarithmic(axes: Any, which: str = "x") -> None:
    """Make an axis logarithmic with plain numbers as labels. Call it after drawing, since it uses the axis limits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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


def use_fonts_for_all_text(figure: Figure) -> None:
    """Give each text of a figure fonts that have its characters, such as Chinese, Japanese or Arabic names.

    Warn once per process about characters that no installed font has; they are drawn as boxes.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        fonts = _fonts_for(text.get_text())
        if len(fonts) > 1:
            text.set_fontfamily(list(fonts))


@cache
def _fonts_for(text: str) -> tuple[str, ...]:
    """Return font families that together have the characters of a text; the default one first."""
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
