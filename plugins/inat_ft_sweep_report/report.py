"""The report of a sweep: one HTML page that needs no network, and its figures as PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from inat_ft_figures.figures import BLUE, GREY, ORANGE, inline, new_figure, plotting, save
from inat_ft_sweeps.attempts import Trial
from inat_ft_sweeps.selection import choose, read_run
from inat_ft_sweeps.study import Sweep

from inat_ft import __version__
from inat_ft.records import write_text
from inat_ft_sweep_report.statistics import Column, Importance, columns, correlations, importances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ABSENT = "not used"
_MAX_LABELS = 8
_WIDTH, _WIDE = 4.8, 9.6
"""Width of a chart in inches, as in the other reports: in one of two columns, and in both."""


def write_report(sweep: Sweep, folder: Path) -> list[Path]:
    """Write report.html and a PNG and SVG of each figure; return the page and the PNGs.

    Raises RecordError if no trial is complete.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    selection = choose(sweep)
    trials = sorted((c.trial for c in selection.candidates), key=lambda trial: trial.number)
    maximize, metric = sweep.spec.metric.goal == "maximize", sweep.spec.metric.name.replace("_", " ")
    weights, shown = importances(trials), columns(trials)
    figures = {"trials": (_over_trials(trials, metric, maximize), f"{metric} of each trial, and the best so far")}
    if weights:
        share = f"fraction of the variance of {metric} explained by each parameter"
        figures["parallel"] = _parallel(trials, shown, metric, maximize), f"one line per trial, colored by {metric}"
        figures["importance"] = _importance(weights), share
        figures["values"] = _by_value(shown, metric), f"{metric} by value of each parameter, with the mean"
    loader = ChoiceLoader([PackageLoader("inat_ft_sweep_report"), PackageLoader("inat_ft_report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    runs = filter(None, (read_run(sweep, trial) for trial in trials))
    seconds = [run.seconds["total"] for run in runs if "total" in run.seconds]
    page = environment.get_template("sweep.html").render(
        sweep=sweep,
        state=sweep.status(),
        selection=selection,
        metric=metric,
        maximize=maximize,
        best=sweep.command(selection.candidates[0].trial.params),
        trials=sweep.trials(),
        names=list(dict.fromkeys(name for trial in trials for name in trial.params)),
        importances=weights,
        correlations=correlations(trials),
        columns=shown,
        seconds=(sum(seconds), median(seconds)) if seconds else None,
        overlapping=sum(trial.seconds or 0.0 for trial in trials) > 1.5 * sum(seconds),
        charts={
            name: {"image": inline(figure), "caption": caption, "is_wide": figure.get_figwidth() > _WIDTH}
            for name, (figure, caption) in figures.items()
        },
        version=__version__,
    )
    write_text(folder / "report.html", page)
    return [folder / "report.html", *(save(figure, folder / name)[0] for name, (figure, _) in figures.items())]


def _width(needed: float) -> float:
    return _WIDTH if needed <= _WIDTH else max(_WIDE, needed)


def _over_trials(trials: Sequence[Trial], metric: str, maximize: bool) -> Figure:
    numbers, values = [trial.number for trial in trials], np.array([trial.value for trial in trials], float)
    best = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    with plotting():
        figure, axes = new_figure(_WIDTH, 3.3)
        axes.plot(numbers, values, "o", color=BLUE, label="trial")
        axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
        axes.set(xlabel="trial", ylabel=metric)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure  # type: ignore[no-any-return]  # matplotlib is untyped


def _parallel(trials: Sequence[Trial], shown: Sequence[Column], metric: str, maximize: bool) -> Figure:
    """Draw one line per trial. The values of a parameter are equally spaced, in their order."""
    values = np.array([trial.value for trial in trials], float)
    low, high = float(values.min()), float(values.max())
    heights, labels = [], []
    for column in shown:
        distinct = [_ABSENT] * (len(column.y) < len(trials)) + column.distinct
        places = np.linspace(0, 1, len(distinct))
        heights.append([places[distinct.index(trial.params.get(column.name, _ABSENT))] for trial in trials])
        marks = [(h, f"{v:.4g}" if isinstance(v, float) else str(v)) for h, v in zip(places, distinct, strict=True)]
        labels.append(marks if len(marks) <= _MAX_LABELS else [marks[0], marks[-1]])
    jitter = np.random.default_rng(0).uniform(-0.012, 0.012, (len(shown), len(trials)))
    lines = np.vstack([np.array(heights) + jitter, (values - low) / ((high - low) or 1.0)])
    labels.append([(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")])
    with plotting() as mpl:
        figure, axes = new_figure(_width(1.1 * len(lines)), 3.3)
        colormap = mpl.colormaps["viridis_r" if maximize else "viridis"]
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), colormap)
        figure.colorbar(scale, ax=axes, label=metric, pad=0.1, fraction=0.05)
        for trial in np.argsort(values if maximize else -values):  # the best on top
            axes.plot(lines[:, trial], color=scale.to_rgba(values[trial]), alpha=0.85, linewidth=1.4, zorder=1)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
        for place, marks in enumerate(labels):
            axes.axvline(place, color=GREY, linewidth=1)
            for height, text in marks:
                axes.text(place + 0.03, height, text, va="center", fontsize=8, bbox=box, zorder=3)
        axes.set_xticks(range(len(lines)), [*(column.name for column in shown), metric])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    return figure  # type: ignore[no-any-return]  # matplotlib is untyped


def _importance(weights: Sequence[Importance]) -> Figure:
    with plotting():
        figure, axes = new_figure(_WIDTH, 1.5 + 0.4 * len(weights))
        for place, weight in enumerate(reversed(weights)):
            axes.barh(place, weight.share, color=BLUE, height=0.6)
            axes.plot([weight.low, weight.high], [place, place], color="black", linewidth=1.4)
            label = "95% quantile under no effect" if place == 0 else None
            axes.plot([weight.null_quantile] * 2, [place - 0.36, place + 0.36], color=ORANGE, linewidth=2, label=label)
        axes.set_yticks(range(len(weights)), [weight.name for weight in reversed(weights)])
        axes.set(xlim=(0, 1), xlabel="fraction of the variance, with 95% interval")
        figure.legend(frameon=False, loc="outside lower right")
    return figure  # type: ignore[no-any-return]  # matplotlib is untyped


def _by_value(shown: Sequence[Column], metric: str) -> Figure:
    widths = [max(2.0, 0.35 * len(column.names)) for column in shown]
    with plotting():
        figure, grid = new_figure(
            _width(sum(widths)), 3.0, ncols=len(shown), sharey=True, squeeze=False, width_ratios=widths
        )
        for axes, column in zip(grid[0], shown, strict=True):
            level, y, number = column.level, column.y, len(column.names)
            axes.plot(level + np.random.default_rng(0).uniform(-0.12, 0.12, len(y)), y, "o", color=BLUE, alpha=0.6)
            for place in np.unique(level):
                axes.plot([place - 0.3, place + 0.3], [y[level == place].mean()] * 2, color=ORANGE, linewidth=2)
            axes.set_xticks(range(number), column.names, rotation=0 if number <= 3 else 30 if number <= 6 else 90)
            axes.set(xlabel=column.name, xlim=(-0.6, number - 0.4))
        grid[0][0].set_ylabel(metric)
    return figure  # type: ignore[no-any-return]  # matplotlib is untyped
