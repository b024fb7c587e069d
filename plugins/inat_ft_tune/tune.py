"""Tune: split, measure, plan, search, and choose a model, in a given time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inat_ft_sweeps.api import TuneResult

from inat_ft.api.train import Run, as_overrides
from inat_ft.config import RunConfig
from inat_ft.errors import InatFtError, UsageError
from inat_ft.paths import cache_folder
from inat_ft.progress import Log, ProgressBar, ignore_log, no_progress
from inat_ft.settings import Override, load_config
from inat_ft.tables import Table
from inat_ft.text import pluralize
from inat_ft_tune.candidates import chosen_strategies
from inat_ft_tune.conclusion import Standing, standings, summarize
from inat_ft_tune.planner import Plan, format_seconds
from inat_ft_tune.report import write_report
from inat_ft_tune.session import Session
from inat_ft_tune.splitting import data_name, make_split
from inat_ft_tune.stages import run_stages
from inat_ft_tune.state import FILE, State, Trial, read_state

_UNITS = {"h": 3600, "m": 60, "min": 60, "s": 1}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)")
_LEAST_S = 10.0


@dataclass(frozen=True)
class Request:
    """What the user asks for. data: folder or manifest; None continues the search in `out`."""

    data: Path | None
    budget_s: float | None = None
    out: Path | None = None
    strategies: Sequence[str] = ()
    config: str | os.PathLike[str] | RunConfig | None = None
    overrides: Sequence[Override] = ()
    seed: int = 0
    runs: Path = Path("runs")
    cache: Path = Path()


def parse_duration(text: str | float) -> float:
    """Return the seconds of `90s`, `30m`, `2h` or `1h30m`; a number is in seconds. Raises UsageError."""
    if isinstance(text, str):
        found = _DURATION.findall(text.strip().lower())
        if not found or _DURATION.sub("", text.strip().lower()).strip():
            raise UsageError(f"cannot read the budget {text!r}", "write it as 90s, 30m, 2h or 1h30m")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in found)
    else:
        seconds = float(text)
    if not _LEAST_S <= seconds < 3e7:
        raise UsageError(f"a budget of {text} is out of range", f"use at least {_LEAST_S:.0f}s, such as 30m")
    return seconds


def open_session(
    request: Request,
    started: float,
    log: Log = ignore_log,
    progress: ProgressBar = no_progress,
    warn: Log = ignore_log,
) -> Session:
    """Return a new search, or the one that was interrupted in this folder. Raises UsageError."""
    if request.data is None and request.out is None:
        raise UsageError("there is nothing to tune", "name a folder of images or a manifest: inat-ft tune DATA")
    out = request.out or Path("tunes") / data_name(request.data or Path())
    base = load_config(request.config, request.overrides)
    if odd := [key for key, _ in request.overrides if key.startswith(("strategy.", "name", "seed"))]:
        raise UsageError(f"{odd[0]} cannot be set here", "strategies and the seed have options of their own")
    if request.data is None or (out / FILE).exists():
        state = read_state(out)
        if request.data is not None:
            _require_same(request, base, state, out)
        else:
            base = load_config(None, [(key, value) for key, value in state.given])
        if "final" not in state.finished:
            state.budget_s = request.budget_s or state.budget_s
    else:
        state = State(
            data=_text(request.data or Path()),
            given=_given(base),
            settings=[],
            strategies=chosen_strategies(request.strategies, log),
            seed=request.seed,
            runs=request.runs.as_posix(),
            budget_s=request.budget_s or parse_duration("30m"),
        )
        state.asked = list(request.strategies)
    return Session(out, state, base, request.cache, Path(state.runs), started, log, progress, warn)


def _given(config: RunConfig) -> list[Override]:
    """Return the settings that are not defaults."""
    sections = {"data", "model", "optim", "stop", "compute"}
    dump = config.model_dump(mode="json", include=sections, exclude_unset=True)
    return [
        (f"{section}.{key}", value)
        for section, values in dump.items()
        for key, value in values.items()
        if value is not None and key in getattr(config, section).model_fields_set
    ]


def _require_same(request: Request, base: RunConfig, state: State, out: Path) -> None:
    now = (_text(request.data or Path()), dict(_given(base)), list(request.strategies), request.seed)
    if (*now, request.runs.as_posix()) != (state.data, dict(state.given), state.asked, state.seed, state.runs):
        raise UsageError(
            f"{out} contains a search with other data or settings",
            f"choose another folder with --out, or continue that one: inat-ft tune --resume {out}",
        )


def _text(path: Path) -> str:
    return Path(os.path.normpath(path)).as_posix()


def prepare_plan(session: Session) -> Plan:
    """Split, measure and plan, and say what comes."""
    make_split(session)
    if session.state.head_cost is None:
        session.use_fastest_threads()
        strategies = pluralize(1 + len(session.state.strategies), "strategy").replace("strategys", "strategies")
        session.log(f"measuring a few batches of {strategies}")
    session.measure()
    plan = session.plan()
    session.log(str(plan_table(session, plan)))
    for name, reason in session.state.skipped.items():
        session.log(f"skipped: {name}: {reason}")
    if plan.skipped:
        session.log(f"only if there is time left: {', '.join(plan.skipped)}")
    session.save()
    return plan


def plan_table(session: Session, plan: Plan) -> Table:
    """Return the stages with their estimated time."""
    rungs = ", then ".join(
        f"{pluralize(rung.candidates, 'candidate')} to {pluralize(rung.epochs, 'epoch')}" for rung in plan.halving.rungs
    )
    heads, confirmation, final = plan.heads, plan.confirmation, plan.final
    repeats = f"the {confirmation.leaders} best with {pluralize(confirmation.seeds, 'new seed')} each"
    rows: list[tuple[str, str, float]] = [
        (
            "heads on cached features",
            f"{pluralize(heads.runs, 'run')} of {heads.epochs} epochs",
            heads.seconds,
        ),
        ("strategies, successive halving", rungs or "none", plan.halving.seconds),
        ("confirmation", repeats if confirmation.seeds else "none", confirmation.seconds),
        ("training of the choice", f"{final.epochs} epochs or more" if final.epochs else "none", final.seconds),
    ]
    state = session.state
    title = (
        f"plan for {state.budget_s:.0f} s ({format_seconds(max(0.0, session.left))} left), "
        f"{state.images['train']:,} training and {state.images['val']:,} validation images"
    )
    columns = {"stage": "", "what": "", "estimate": ""}
    return Table(columns, [(name, what, format_seconds(seconds)) for name, what, seconds in rows], title)


def tune_session(session: Session) -> TuneResult:
    """Run a tuning to its end, and write its report. Its folder must be locked."""
    if not session.state.finished:
        prepare_plan(session)
    elif "final" not in session.state.finished:
        session.log(f"continuing, {format_seconds(max(0.0, session.left))} left: {session.folder}")
    else:
        session.log(f"{session.folder} is finished; to search again, choose another folder with --out")
    try:
        run_stages(session)
    except InatFtError as error:
        error.__notes__ = [f"to continue: inat-ft tune --resume {session.folder}"]  # not that of a single run
        raise
    state = session.state
    found = standings(state)
    state.summary = summarize(state, found)
    session.save()
    report = write_report(session, found)
    details = {**to_dict(session, found), "report": report.as_posix()}
    return TuneResult(Run.open(state.run), state.summary, report, details)


def require_test_images(session: Session) -> None:
    """Split the images if necessary. Raises UsageError if there are none to test on."""
    make_split(session)
    if not len(session.manifest.rows("test")):
        hint = "remove --eval, or split again: inat-ft split DATA --test-fraction 0.2"
        raise UsageError(f"{session.state.split} has no test images for --eval", hint)


def to_dict(session: Session, found: Sequence[Standing]) -> dict[str, Any]:
    """Return the result as `inat-ft tune --json` prints it."""
    state = session.state
    return {
        "data": state.data,
        "split": state.split,
        "budget_s": state.budget_s,
        "spent_s": round(state.spent_s, 2),
        "directory": session.folder.as_posix(),
        "chosen": {"strategy": state.trial(state.chosen).strategy, **state.trial(state.chosen).params},
        "run": state.run,
        "val_accuracy": Run.open(state.run).val_accuracy,
        "summary": state.summary,
        "confirmed": [
            {
                "strategy": each.trial.strategy,
                **each.trial.params,
                "values": list(each.values),
                "mean": each.mean,
                "p": each.p,
            }
            for each in found
        ],
        "stages": {name: times.model_dump() for name, times in state.times.items()},
        "skipped": state.skipped,
        "trials": [_row(trial) for trial in sorted(state.trials, key=lambda trial: -(trial.value or 0.0))],
    }


def _row(trial: Trial) -> dict[str, Any]:
    row = trial.model_dump(exclude={"epoch_s", "value", "of"})
    return {**row, "settings": trial.settings, "val_accuracy": trial.value, "seconds": round(trial.seconds, 2)}


def plan_dict(session: Session, plan: Plan) -> dict[str, Any]:
    """Return the plan as `inat-ft tune --dry-run --json` prints it."""
    state = session.state
    seconds = {name: round(times.planned, 2) for name, times in state.times.items()}
    return {
        "budget_s": state.budget_s,
        "spent_s": round(state.spent_s, 2),
        "seconds": seconds,
        "images": state.images,
        "costs": {name: dict(zip(("once", "run", "epoch"), cost, strict=True)) for name, cost in state.costs.items()},
        "plan": asdict(plan),
        "skipped": state.skipped,
    }


def tune(
    data: str | os.PathLike[str] | None,
    budget: str | float | None,
    *,
    settings: Mapping[str, Any] | None = None,
    strategies: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | RunConfig | None = None,
    seed: int = 0,
    runs_dir: str | os.PathLike[str] = "runs",
    cache_dir: str | os.PathLike[str] | None = None,
    log: Log = ignore_log,
    **options: Any,
) -> TuneResult:
    """Run a tuning as described in `inat_ft.tune`."""
    request = Request(
        None if data is None else Path(data),
        None if budget is None else parse_duration(budget),
        None if out is None else Path(out),
        strategies,
        config,
        as_overrides(options, settings),
        seed,
        Path(runs_dir),
        cache_folder(cache_dir),
    )
    session = open_session(request, time.monotonic(), log, warn=log)
    with session.lock():
        try:
            return tune_session(session)
        except KeyboardInterrupt:
            session.save()
            raise
