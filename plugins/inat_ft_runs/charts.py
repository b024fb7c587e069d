"""Line charts as inline SVG, which take their colors from the page and so follow the light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 8.0, 24.0
_MAX = 1e300  # so that a difference of two values is finite


class Series(NamedTuple):
    """A line: its label, its points, and its style, a class of the page's style sheet."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


def line_chart(title: str, series: Sequence[Series], width: float = 300, height: float = 150, low: float = math.nan,
               high: float = math.nan) -> str:  # fmt: skip
    """Return an SVG of the lines over the epochs, or an empty string if no value is finite.

    low, high: range of the vertical axis. Default: the range of the points.
    """
    series = [s._replace(points=[p for p in s.points if abs(p[1]) < _MAX]) for s in series]
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    left, right = min(xs), max(xs)
    ticks = _ticks(min(ys) if math.isnan(low) else low, max(ys) if math.isnan(high) else high)
    bottom, top = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - bottom) / (top - bottom)
        return _LEFT + across * (width - _LEFT - _RIGHT), height - _BOTTOM - up * (height - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        y = place(left, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT:g}" x2="{width - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5:g}" y="{y + 3:.1f}" text-anchor="end">{tick:.3g}</text>')
    for x in dict.fromkeys((left, right)):
        parts.append(f'<text x="{place(x, bottom)[0]:.1f}" y="{height - 7:g}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{(width + _LEFT) / 2:g}" y="{height - 7:g}" text-anchor="middle">epoch</text>')
    for each in series:
        parts += _line(each, [place(*point) for point in each.points])
    label = escape(f"{title}: {', '.join(each.label for each in series)}" if len(series) < 9 else title)
    size = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg class="chart" {size} role="img" aria-label="{label}"><title>{label}</title>{"".join(parts)}</svg>'


def _line(series: Series, places: Sequence[tuple[float, float]]) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places) if len(places) <= 40 else ""
    title = f"<title>{escape(series.label)}</title>"
    return [f'<g class="{series.style}">{title}<polyline points="{path}"/>{dots}</g>'] if places else []


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers that enclose the range."""
    span = max(high - low, 1e-9 * max(abs(low), abs(high)))  # closer values look equal in the chart
    span = span if span > 1 / _MAX else 1.0
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]
