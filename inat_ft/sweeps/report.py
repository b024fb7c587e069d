"""The report of a sweep: one HTML page that needs no network, and its figures as PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from inat_ft import __version__
from inat_ft.evaluation.figures import BLUE, GREY, ORANGE, new_figure, plotting, save
from inat_ft.evaluation.report import inline
from inat_ft.records import RunRecord, write_text
from inat_ft.sweeps.attempts import Trial
from inat_ft.sweeps.selection import choose, read_run
from inat_ft.sweeps.statistics import (
    Importance,
    bin_values,
    columns,
    correlations,
    importances,
    is_logarithmic,
    is_numeric,
    means_by_value,
)
from inat_ft.sweeps.study import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ABSENT = object()
_ABOVE = 0.2
_LABEL_HEIGHT = 0.07
"""Distance below which two labels of a parallel-coordinates axis overlap, as a fraction of its height."""
_LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}


@dataclass(frozen=True)
class Times:
    """The time of a sweep, in seconds."""

    total: float
    per_trial: float
    first_pass: float | None
    """Time for the frozen layers in the trial that filled the cache; None if nothing was shared."""
    saved: float | None
    """Estimate of what the cache saved in the other trials."""


def write_report(sweep: Sweep, folder: Path) -> list[Path]:
    """Write report.html and a PNG and SVG of each figure; return the page and the PNGs.

    Raises RecordError if no trial is complete.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    selection = choose(sweep)
    trials = sorted((c.trial for c in selection.candidates), key=lambda trial: trial.number)
    maximize, metric = sweep.spec.metric.goal == "maximize", sweep.spec.metric.name.replace("_", " ")
    weights = importances(trials)
    figures = {"trials": (_over_trials(trials, metric, maximize), f"{metric} of each trial, and the best so far")}
    if weights:
        figures["parallel"] = (_parallel(trials, metric, maximize), f"one line per trial, colored by {metric}")
        figures["importance"] = (
            _importance(weights),
            f"fraction of the variance of {metric} explained by each parameter",
        )
        figures["values"] = (_by_value(trials, metric), f"{metric} by value of each parameter, with the mean")
    loader = ChoiceLoader([PackageLoader("inat_ft.sweeps"), PackageLoader("inat_ft.evaluation")])
    page = (
        Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        .get_template("sweep.html")
        .render(
            sweep=sweep,
            state=sweep.status(),
            selection=selection,
            metric=metric,
            best=sweep.command(selection.candidates[0].trial.params),
            trials=sweep.trials(),
            names=list(dict.fromkeys(name for trial in trials for name in trial.params)),
            importances=weights,
            correlations=correlations(trials),
            means_by_value=means_by_value(trials, maximize),
            times=_times(sweep, trials),
            charts={name: {"image": inline(figure), "caption": caption} for name, (figure, caption) in figures.items()},
            version=__version__,
        )
    )
    write_text(folder / "report.html", page)
    pngs = [save(figure, folder / name)[0] for name, (figure, _) in figures.items()]
    return [folder / "report.html", *pngs]


def _times(sweep: Sweep, trials: Sequence[Trial]) -> Times | None:
    runs = [run for run in (read_run(sweep, trial) for trial in trials) if run is not None and "total" in run.seconds]
    if not runs:
        return None
    totals = [run.seconds["total"] for run in runs]
    extra = [_overhead(run) for run in runs]
    first = max(extra)
    shared = len(runs) > 1 and first > 3 * median(extra) and first > 0.5
    return Times(
        sum(totals), median(totals), first if shared else None, first * len(runs) - sum(extra) if shared else None
    )


def _overhead(run: RunRecord) -> float:
    """Return the seconds of a run beyond its epochs at their median time: reading images and filling caches."""
    epochs = [epoch.seconds for epoch in run.history if epoch.seconds is not None]
    return max(0.0, run.seconds["total"] - median(epochs) * len(epochs)) if epochs else 0.0


def _over_trials(trials: Sequence[Trial], metric: str, maximize: bool) -> Figure:
    values = np.array([trial.value for trial in trials], float)
    best = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    with plotting():
        figure, axes = new_figure(6.4, 3.4)
        axes.plot([trial.number for trial in trials], values, "o", color=BLUE, label="trial")
        axes.step([trial.number for trial in trials], best, where="post", color=ORANGE, label="best so far")
        axes.set(xlabel="trial", ylabel=metric)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure  # type: ignore[no-any-return]


def _heights(values: Sequence[Any]) -> tuple[np.ndarray[Any, Any], list[tuple[float, str]]]:
    """Return the position of each value on an axis from 0 to 1, and its tick labels; absent values are at 0."""
    known = [value for value in values if value is not _ABSENT]
    if len(known) < len(values):
        heights, marks = _heights(known)
        placed = iter(_ABOVE + (1 - _ABOVE) * heights)
        at = np.array([0.0 if value is _ABSENT else next(placed) for value in values])
        return at, [(0.0, "not used"), *((_ABOVE + (1 - _ABOVE) * height, text) for height, text in marks)]
    if not is_numeric(values):
        level, names = bin_values(values)
        return level / max(1, len(names) - 1), [(n / max(1, len(names) - 1), name) for n, name in enumerate(names)]
    scaled = np.log(np.array(values, float)) if is_logarithmic(values) else np.array(values, float)
    low, spread = scaled.min(), float(np.ptp(scaled)) or 1.0
    distinct = sorted(set(values))
    shown = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
    marks = [(float(scaled[values.index(value)] - low) / spread, f"{value:.4g}") for value in shown]
    return (scaled - low) / spread, marks


def _parallel(trials: Sequence[Trial], metric: str, maximize: bool) -> Figure:
    names = [column.name for column in columns(trials)]
    axes_of = {name: _heights([trial.params.get(name, _ABSENT) for trial in trials]) for name in names}
    axes_of[metric] = _heights([trial.value for trial in trials])
    lines = np.stack([heights for heights, _ in axes_of.values()], axis=1)
    good = lines[:, -1] if maximize else 1 - lines[:, -1]
    jitter = np.random.default_rng(0).uniform(-0.012, 0.012, lines.shape) * np.r_[np.ones(lines.shape[1] - 1), 0]
    values = np.array([trial.value for trial in trials], float)
    with plotting() as mpl:
        figure, axes = new_figure(max(6.4, 1.3 * len(axes_of)), 3.6)
        colormap = mpl.colormaps["viridis_r" if maximize else "viridis"]
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(values.min(), values.max()), colormap)
        figure.colorbar(scale, ax=axes, label=metric, pad=0.12, fraction=0.04)
        for place in np.argsort(good):
            shade = scale.to_rgba(values[place])
            axes.plot(range(lines.shape[1]), (lines + jitter)[place], color=shade, alpha=0.85, linewidth=1.4, zorder=1)
        for place, (_, marks) in enumerate(axes_of.values()):
            axes.axvline(place, color=GREY, linewidth=1)
            for height, text in _apart(marks):
                axes.annotate(
                    _escape_math(text),
                    (place, height),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    bbox=_LABEL_BOX,
                    zorder=3,
                )
        axes.set_xticks(range(len(axes_of)), [_escape_math(name) for name in axes_of])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    return figure  # type: ignore[no-any-return]


def _apart(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return the labels of an axis without those that would overlap the one below; the first and last stay."""
    ordered = sorted(marks)
    kept = ordered[:1]
    for height, text in ordered[1:-1]:
        if height - kept[-1][0] >= _LABEL_HEIGHT and ordered[-1][0] - height >= _LABEL_HEIGHT:
            kept.append((height, text))
    return kept + ordered[1:][-1:]


def _importance(weights: Sequence[Importance]) -> Figure:
    with plotting():
        figure, axes = new_figure(6.4, 1.3 + 0.4 * len(weights))
        for place, weight in enumerate(reversed(weights)):
            axes.barh(place, weight.share, color=BLUE, height=0.6)
            axes.plot([weight.low, weight.high], [place, place], color="black", linewidth=1.4)
            label = "95 % quantile under no effect" if place == 0 else None
            axes.plot([weight.null_quantile] * 2, [place - 0.36, place + 0.36], color=ORANGE, linewidth=2, label=label)
        axes.set_yticks(range(len(weights)), [_escape_math(weight.name) for weight in reversed(weights)])
        axes.set(xlim=(0, 1), xlabel="fraction of the variance, with 95 % interval")
        axes.legend(frameon=False, loc="lower right")
    return figure  # type: ignore[no-any-return]


def _by_value(trials: Sequence[Trial], metric: str) -> Figure:
    shown = columns(trials)
    panels = [bin_values(column.values) for column in shown]
    widths = [max(2.0, 0.35 * len(names)) for _, names in panels]
    with plotting():
        figure, grid = new_figure(
            max(3.2, sum(widths)), 3.0, ncols=len(shown), sharey=True, squeeze=False, width_ratios=widths
        )
        for axes, column, (level, names) in zip(grid[0], shown, panels, strict=True):
            y = column.y
            axes.plot(level + np.random.default_rng(0).uniform(-0.12, 0.12, len(y)), y, "o", color=BLUE, alpha=0.6)
            for place in range(len(names)):
                if (level == place).any():
                    axes.plot([place - 0.3, place + 0.3], [y[level == place].mean()] * 2, color=ORANGE, linewidth=2)
            turned = 0 if len(names) <= 3 else 30 if len(names) <= 6 else 90
            axes.set_xticks(range(len(names)), [_escape_math(word) for word in names], rotation=turned)
            axes.set(xlabel=_escape_math(column.name), xlim=(-0.6, len(names) - 0.4))
        grid[0][0].set_ylabel(metric)
    return figure  # type: ignore[no-any-return]


def _escape_math(text: str) -> str:
    """Return text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
