"""The output of `inat-ft sweep`: tables for people, and the same facts as JSON."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft.cli import render
from inat_ft.text import pluralize

if TYPE_CHECKING:
    from inat_ft.records import Evaluation
    from inat_ft.sweeps.attempts import Trial
    from inat_ft.sweeps.base import SweepStatus
    from inat_ft.sweeps.selection import Candidate, Replication, Selection
    from inat_ft.sweeps.soup import Soup
    from inat_ft.sweeps.study import Sweep


def created_json(sweep: "Sweep", skipped: dict[str, str]) -> dict[str, Any]:
    points = sweep.spec.points()
    return {
        "id": sweep.id,
        "points": None if points is None else len(points),
        "trials": sweep.spec.num_trials,
        "wandb": sweep.address if sweep.backend_name == "wandb" else None,
        "left_out": skipped,
        "next": sweep.next_command("run"),
        "backend": sweep.backend_name,
        "address": sweep.address,
    }


def show_created(sweep: "Sweep", skipped: dict[str, str]) -> None:
    for line in _describe_space(sweep):
        render.info(line)
    for strategy, reason in skipped.items():
        render.info(f"skipped: {strategy}: {reason}")
    if sweep.address:
        render.info(f"the sweep is at {sweep.address} (backend {sweep.backend_name})")
    else:
        place = sweep.storage.name if sweep.storage.transient else "this machine"
        wandb = "; to create it at W&B use --backend wandb" if sweep.backend_name == "local" else ""
        render.info(f"the sweep is on {place} (backend {sweep.backend_name}){wandb}")
    if sweep.backend_name == "wandb":
        render.echo(f"W&B:  {sweep.address}")
    render.echo(f"id:   {sweep.id}")
    render.echo(f"next: {sweep.next_command('run')}")


def _describe_space(sweep: "Sweep") -> list[str]:
    spec, points = sweep.spec, sweep.spec.points()
    search = f"{spec.method}, {spec.metric.goal} {spec.metric.name}"
    if points is None:
        no_limit = "no run_cap: use `sweep run --count N`"
        return [f"{search}: {pluralize(spec.run_cap, 'trial') if spec.run_cap else no_limit}"]
    number, trials = len(points), spec.num_trials or len(points)
    lines = [f"{search}: {pluralize(trials, 'trial')} of {pluralize(number, 'point')}"]
    if 0 < (more := number - trials) <= number // 2:
        lines.append(
            f"{pluralize(more, 'more trial')} (run_cap: {number}) would try every point; without "
            f"{'it' if more == 1 else 'them'} the best point is missed with a probability of up to {more / number:.1%}"
        )
    return lines


def show_end(sweep: "Sweep", status: "SweepStatus", folders: Sequence[str] = ()) -> None:
    """Print how `sweep run` ended. Raises InatFtError for a sweep that failed."""
    from inat_ft.errors import InatFtError
    from inat_ft.sweeps.attempts import TrialState
    from inat_ft.sweeps.base import SweepState

    again = f"fix the cause, then run: {sweep.next_command('run', *folders)}"
    if status.state is SweepState.FAILED:
        raise InatFtError(f"the sweep stopped: {status.message}", again)
    trials = sweep.trials()
    failed = [trial for trial in trials if trial.state is TrialState.FAILED]
    for trial in failed:
        attempts = pluralize(trial.attempts, "attempt")
        render.info(f"failed after {attempts}: trial {trial.number}, {_params(trial)}: {trial.reason}")
    if failed and len(failed) == len(trials):
        raise InatFtError(
            f"no trial of sweep {sweep.id} has succeeded; the last error: {failed[-1].reason}",
            f"{again}\nlist all errors: {sweep.next_command('status')}",
        )
    render.echo(": ".join(filter(None, status)))
    if best := sweep.best():
        render.echo(f"best: trial {best[0].number}, {sweep.spec.metric.name} {best[0].value:.4f}: {_params(best[0])}")
        render.info(f"next: {sweep.next_command('best', *folders)}, {sweep.next_command('report')}")


def status_json(sweep: "Sweep") -> dict[str, Any]:
    status, best = sweep.status(), sweep.best()
    return {
        "id": sweep.id,
        "state": status.state,
        "why": status.message,
        "metric": sweep.spec.metric.name,
        "goal": sweep.spec.metric.goal,
        "num_trials": sweep.spec.num_trials,
        "best": best[0].number if best else None,
        "fixed": sweep.spec.fixed,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "params": trial.params,
                "value": trial.value,
                "seconds": trial.seconds,
                "attempts": trial.attempts,
                "reason": trial.reason or None,
                **_run_json(sweep, trial),
            }
            for trial in sweep.trials()
        ],
    }


def _run_json(sweep: "Sweep", trial: "Trial") -> dict[str, Any]:
    return {"run": (sweep.runs / trial.run).as_posix(), "command": sweep.command(trial.params)}


def progress_json(id: str, sweeps_dir: Path) -> dict[str, Any]:
    """Return the state of a sweep in the folder, its number of trials and the best value; or why it is unknown."""
    from inat_ft.errors import InatFtError
    from inat_ft.sweeps.folder import open_sweep

    try:
        sweep = open_sweep(id, sweeps_dir)
        state, best, limit = sweep.status().state, sweep.best(), sweep.spec.num_trials
    except InatFtError as error:
        return {"state": f"unknown: {error.message}", "trials": "", "best": ""}
    done = _num_done(sweep.trials())
    value = f"{best[0].value:.4f}" if best else ""
    return {"state": state, "trials": f"{done} of {limit}" if limit else str(done), "best": value}


def _num_done(trials: "Sequence[Trial]") -> int:
    from inat_ft.sweeps.attempts import TrialState

    return sum(trial.state.has_value or trial.state is TrialState.FAILED for trial in trials)


def show_status(sweep: "Sweep") -> "SweepStatus":
    from inat_ft.sweeps.worker import format_value

    status, trials, best = sweep.status(), sweep.trials(), sweep.best()
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        (
            trial.number,
            trial.state + (f", {trial.attempts} attempts" if trial.attempts > 1 else ""),
            *(format_value(trial.params.get(name, "")) for name in names),
            ("" if trial.value is None else f"{trial.value:.4f}")
            + (" best" if best and trial.number == best[0].number else ""),
            "" if trial.seconds is None else f"{trial.seconds:.1f}",
            trial.reason,
        )
        for trial in trials
    ]
    columns = ("trial", "state", *names, sweep.spec.metric.name, "seconds", "")
    title = f"sweep {sweep.id}: {', '.join(filter(None, status))}"
    render.table(title, columns, rows, right=("trial", "seconds", *names), drop=("seconds",))
    render.echo(_progress(sweep, status, trials))
    if best:
        render.echo(f"best so far: trial {best[0].number}, {sweep.command(best[0].params)}")
    return status


def _progress(sweep: "Sweep", status: "SweepStatus", trials: "list[Trial]") -> str:
    """Return the number of trials by state, and an estimate of the time left."""
    from inat_ft.sweeps.attempts import TrialState
    from inat_ft.sweeps.base import SweepState

    counts = Counter(trial.state for trial in trials)
    shown = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no trial yet"
    limit = sweep.spec.num_trials
    if status.state is SweepState.FINISHED or not limit:
        return shown
    seconds = [trial.seconds for trial in trials if trial.state is TrialState.COMPLETE and trial.seconds is not None]
    left = limit - _num_done(trials)
    if not seconds or not left:
        return f"{shown}, of {limit}"
    estimate = left * sum(seconds) / len(seconds) / max(1, counts[TrialState.RUNNING])
    return f"{shown}, of {limit}; about {estimate:,.0f} s left"


def _params(trial: "Trial") -> str:
    from inat_ft.sweeps.worker import format_params

    return format_params(trial.params)


def best_json(
    sweep: "Sweep",
    selection: "Selection",
    taken: "Candidate",
    repeats: "list[Replication]",
    directory: Path,
    found: "Evaluation | None",
) -> dict[str, Any]:
    def about(candidate: "Candidate") -> dict[str, Any]:
        trial = candidate.trial
        return {
            "number": trial.number,
            "params": trial.params,
            "value": trial.value,
            "p": candidate.p,
            "standing": candidate.standing,
            "cost_s": candidate.cost,
            **_run_json(sweep, trial),
        }

    return {
        "id": sweep.id,
        "best": about(taken),
        "tied": [about(candidate) for candidate in selection.not_significantly_worse],
        "cheapest": about(selection.cheapest),
        "method": selection.test,
        "bias": selection.bias or None,
        "confirmed": [
            {"number": c.trial.number, "values": list(c.values), "mean": c.mean, "deviation": c.deviation}
            for c in repeats
        ],
        "directory": directory.as_posix(),
        "test_accuracy": found.metrics["accuracy"].value if found else None,
        "look": found.look if found else None,
    }


def show_selection(sweep: "Sweep", selection: "Selection", top: int) -> None:
    rows = [
        (
            c.trial.number,
            f"{c.trial.value:.4f}",
            c.standing,
            "" if c.p is None else f"{c.p:.2g}",
            "" if c.cost is None else f"{c.cost:.1f} s",
            _params(c.trial),
        )
        for c in selection.candidates[:top]
    ]
    columns = ("trial", sweep.spec.metric.name, "against the best", "p (Holm)", "cost", "settings")
    render.table(f"sweep {sweep.id}", columns, rows, right=("trial", "p (Holm)", "cost"), drop=("cost", "p (Holm)"))
    if len(selection.candidates) == 1:
        render.echo("it is the only complete trial")
        return
    if selection.is_tested:
        tied = [str(candidate.trial.number) for candidate in selection.not_significantly_worse[1:]]
        render.echo(
            f"not significantly different from the best: {len(tied)} of "
            f"{pluralize(len(selection.candidates) - 1, 'other trial')}{': ' if tied else ''}{', '.join(tied)}"
        )
    render.echo(f"test: {selection.test}")
    render.warn(f"{selection.bias}; train it with other seeds (--confirm 3), or evaluate it on the test set (--eval)")
    cheapest = selection.cheapest
    if cheapest.cost is not None and selection.is_tested:
        shown = f"trial {cheapest.trial.number}, {cheapest.cost:.1f} s, {_params(cheapest.trial)}"
        render.echo(f"cheapest that is not significantly worse: {shown}")


def show_replications(repeats: "list[Replication]") -> None:
    rows = [
        (
            c.trial.number,
            f"{c.values[0]:.4f}",
            f"{c.mean:.4f}" + ("" if c.deviation is None else f" ± {c.deviation:.4f}"),
            ", ".join(f"{value:.4f}" for value in c.values[1:]),
        )
        for c in repeats
    ]
    columns = ("trial", "in the sweep", "mean of the new seeds", "each")
    render.table("repeated with other seeds", columns, rows, right=("trial",))
    render.echo(f"best by the mean of the new seeds: trial {repeats[0].trial.number}, {_params(repeats[0].trial)}")


def soup_json(soup: "Soup") -> dict[str, Any]:
    return {
        "directory": soup.directory.as_posix(),
        "members": soup.members,
        "candidates": soup.num_candidates,
        "val_accuracy": soup.record.val_accuracy,
        "best_alone": soup.best_alone,
        "left_out": soup.excluded,
    }


def show_soup(soup: "Soup") -> None:
    accuracy = soup.record.val_accuracy or 0.0
    for run, reason in soup.excluded.items():
        render.info(f"excluded: {run}: {reason}")
    candidates = f"{soup.num_candidates} runs with the same initialization"
    render.echo(f"averaged: {', '.join(soup.members)} ({len(soup.members)} of {candidates})")
    render.echo(
        f"validation accuracy {accuracy:.4f}; {soup.members[0]}, the best of them, has {soup.best_alone:.4f} "
        f"({100 * (accuracy - soup.best_alone):+.2f} points; both in float32, as in `eval`)"
    )
    render.warn("the validation images chose the runs, so this accuracy is optimistically biased; use the test set")
    render.echo(f"run:  {soup.directory}")
    render.info(f"next: inat-ft eval {soup.directory}")
