"""The report of a tuning: one HTML page that works offline."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inat_ft import __version__
from inat_ft.records import write_text
from inat_ft_tune.conclusion import Standing
from inat_ft_tune.planner import format_seconds
from inat_ft_tune.session import Session
from inat_ft_tune.state import State, Trial

_TITLES = {
    "heads": "heads on cached features",
    "halving": "strategies, successive halving",
    "confirmation": "leaders with new seeds",
    "final": "training of the choice",
}
_WIDTH, _HEIGHT, _LEFT, _TOP = 480, 280, 52, 14
_COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#882255", "#999933", "#8B4513", "#332288",
    "#44AA99",
)  # fmt: skip
"""One for each built-in strategy."""


def write_report(session: Session, found: Sequence[Standing]) -> Path:
    """Write `report.html` into the folder, and return its path."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("inat_ft_tune"), PackageLoader("inat_ft_report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    state = session.state
    page = environment.get_template("tune.html").render(
        state=state,
        standings=found,
        titles=_TITLES,
        trials=sorted(state.trials, key=lambda trial: -(trial.value or 0.0)),
        chart=chart(state),
        next=next_command(state),
        untried=[
            name for name in state.strategies if name not in {trial.strategy for trial in state.trials if trial.epochs}
        ],
        seconds=format_seconds,
        version=__version__,
    )
    file = session.folder / "report.html"
    write_text(file, page)
    return file


def next_command(state: State) -> str:
    """Return the command that evaluates the run; without test images, the one that uses it."""
    command = "eval" if state.images.get("test") else "predict"
    return shlex.join(["inat-ft", command, state.run, *([] if command == "eval" else ["PHOTOS"])])


def chart(state: State) -> dict[str, Any] | None:
    """Return the points of accuracy against seconds per run, in pixels; None for fewer than two."""
    trials = [t for t in state.of_stage("heads", "halving", "final") if t.value is not None and t.seconds > 0]
    if len(trials) < 2:
        return None
    names = list(dict.fromkeys(trial.strategy for trial in trials))
    most, lowest = max(trial.seconds for trial in trials), min(trial.value or 0.0 for trial in trials)
    bottom = max(0.0, lowest - 0.02)

    def x(seconds: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 20) * seconds / most, 1)

    def y(value: float) -> float:
        return round(_HEIGHT - 40 - (_HEIGHT - 40 - _TOP) * (value - bottom) / (1.0 - bottom or 1.0), 1)

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "points": [
            {
                "x": x(t.seconds),
                "y": y(t.value or 0.0),
                "trial": t,
                **_style(state, names, t),
            }
            for t in trials
        ],
        "legend": [{"name": name, "color": _COLORS[place % len(_COLORS)]} for place, name in enumerate(names)],
        "ticks_y": [{"y": y(v), "text": f"{v:.3g}"} for v in _steps(bottom, 1.0)],
        "ticks_x": [{"x": x(v), "text": f"{v:.3g}"} for v in _steps(0.0, most)],
        "left": _LEFT,
        "bottom": _HEIGHT - 40,
    }


def _style(state: State, names: Sequence[str], trial: Trial) -> dict[str, Any]:
    return {"color": _COLORS[names.index(trial.strategy) % len(_COLORS)], "is_run": trial.directory == state.run}


def _steps(low: float, high: float) -> list[float]:
    """Return a few round numbers between two others."""
    size = 10.0 ** math.floor(math.log10(max(high - low, 1e-6)))
    step = next(size * factor for factor in (0.2, 0.5, 1.0, 2.0) if (high - low) / (size * factor) <= 6)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
