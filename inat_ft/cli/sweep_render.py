"""How a sweep shows itself: what it is made of, how far it is, what it has found."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft.cli import render

if TYPE_CHECKING:
    from inat_ft.records import Evaluation
    from inat_ft.sweeps.selection import Candidate, Replication, Selection
    from inat_ft.sweeps.soup import Soup
    from inat_ft.sweeps.study import Sweep, Trial


def pluralize(number: int, what: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def about_space(sweep: "Sweep") -> list[str]:
    spec, points = sweep.spec, sweep.spec.points()
    goal = f"{spec.metric.goal} {spec.metric.name}"
    if points is None:
        limit = (
            pluralize(spec.run_cap, "trial") if spec.run_cap else "no run_cap: say with --count how many trials to run"
        )
        return [f"{spec.method}, {goal}, {limit}"]
    number, trials = len(points), spec.num_trials or len(points)
    are = "is" if number == 1 else "are"
    lines = [
        f"{spec.method}, {goal}: {pluralize(trials, 'trial')}, and {pluralize(number, 'point')} {are} all there is"
    ]
    if 0 < number - trials <= number // 2:
        more = number - trials
        lines.append(
            f"{more} more {'run' if more == 1 else 'runs'} (run_cap: {number}) would try every point: no better one could "
            f"be left out; without them the best of {number} is missed at a chance of {more / number:.1%} at most"
        )
    return lines


def show_end(sweep: "Sweep", state: str, why: str) -> None:
    from inat_ft.errors import InatFtError

    if state == "failed":
        raise InatFtError(f"the sweep has stopped: {why}", f"mend the cause, then: inat-ft sweep run {sweep.id}")
    trials = sweep.trials()
    failed = [trial for trial in trials if trial.state == "failed"]
    for trial in failed:
        render.info(
            f"skipped after {pluralize(trial.attempts, 'attempt')}: trial {trial.number}, {_shown(trial)}: {trial.reason}"
        )
    if failed and len(failed) == len(trials):
        raise InatFtError(
            f"no trial of sweep {sweep.id} has succeeded; the last one: {failed[-1].reason}",
            f"mend the cause, then: inat-ft sweep run {sweep.id}; what each met with: inat-ft sweep status {sweep.id}",
        )
    best = sweep.best()
    render.echo(f"{state}: {why}" if why else state)
    if best:
        render.echo(f"best: trial {best[0].number}, {sweep.spec.metric.name} {best[0].value:.4f}: {_shown(best[0])}")
        render.info(f"next: inat-ft sweep best {sweep.id}, inat-ft sweep report {sweep.id}")


def status_json(sweep: "Sweep") -> dict[str, Any]:
    state, why = sweep.state()
    best = sweep.best()
    return {
        "id": sweep.id,
        "state": state,
        "why": why,
        "metric": sweep.spec.metric.name,
        "goal": sweep.spec.metric.goal,
        "num_trials": sweep.spec.num_trials,
        "best": best[0].number if best else None,
        "fixed": sweep.spec.fixed,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "params": trial.point,
                "value": trial.value,
                "seconds": trial.seconds,
                "attempts": trial.attempts,
                "reason": trial.reason or None,
                "run": (sweep.runs / trial.run).as_posix(),
                "command": sweep.command(trial.point),
            }
            for trial in sweep.trials()
        ],
    }


def standing(id: str, sweeps_dir: Path) -> dict[str, Any]:
    """How far a sweep of the folder is: state, trials done, of how many, and the best value; or why it cannot be told."""
    from inat_ft.errors import InatFtError
    from inat_ft.sweeps.folder import open_sweep

    try:
        sweep = open_sweep(id, sweeps_dir)
        (state, _), best, limit = sweep.state(), sweep.best(), sweep.spec.num_trials
    except InatFtError as error:
        return {"state": f"cannot be told: {error.message}", "trials": "", "best": ""}
    done = sum(trial.state in ("complete", "pruned", "failed") for trial in sweep.trials())
    value = f"{best[0].value:.4f}" if best else ""
    return {"state": state, "trials": f"{done} of {limit}" if limit else str(done), "best": value}


def show_status(sweep: "Sweep") -> tuple[str, str]:
    from inat_ft.sweeps.study import short

    state, why = sweep.state()
    trials, best = sweep.trials(), sweep.best()
    names = list(dict.fromkeys(name for trial in trials for name in trial.point))
    rows = [
        (
            trial.number,
            trial.state + (f", {trial.attempts} attempts" if trial.attempts > 1 else ""),
            *(short(trial.point.get(name, "")) for name in names),
            ""
            if trial.value is None
            else f"{trial.value:.4f}{' best' if best and trial.number == best[0].number else ''}",
            "" if trial.seconds is None else f"{trial.seconds:.1f}",
            trial.reason,
        )
        for trial in trials
    ]
    columns = ("trial", "state", *names, sweep.spec.metric.name, "seconds", "")
    render.table(
        f"sweep {sweep.id}: {state}{f', {why}' if why else ''}",
        columns,
        rows,
        right=("trial", "seconds", *names),
        drop=("seconds",),
    )
    render.echo(_progress(sweep, state, trials))
    if best:
        render.echo(f"best so far: trial {best[0].number}, {sweep.command(best[0].point)}")
    return state, why


def _progress(sweep: "Sweep", state: str, trials: "list[Trial]") -> str:
    counts = {state: sum(trial.state == state for trial in trials) for state in dict.fromkeys(t.state for t in trials)}
    limit = sweep.spec.num_trials
    shown = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no trial yet"
    seconds = [trial.seconds for trial in trials if trial.state == "complete" and trial.seconds is not None]
    left = 0 if limit is None else limit - sum(trial.state in ("complete", "failed", "pruned") for trial in trials)
    running = max(1, counts.get("running", 0))
    if state == "finished":  # perhaps before its last trial: at its target
        return shown
    ahead = f"; about {left * sum(seconds) / len(seconds) / running:,.0f} s left" if seconds and left else ""
    return f"{shown}{f', of {limit}' if limit else ''}{ahead}"


def _shown(trial: "Trial") -> str:
    from inat_ft.sweeps.study import short

    return " ".join(f"{name}={short(value)}" for name, value in trial.point.items())


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
            "params": trial.point,
            "value": trial.value,
            "p": candidate.p,
            "standing": candidate.standing,
            "cost_s": candidate.cost,
            "run": (sweep.runs / trial.run).as_posix(),
            "command": sweep.command(trial.point),
        }

    return {
        "id": sweep.id,
        "best": about(taken),
        "tied": [about(candidate) for candidate in selection.not_significantly_worse],
        "cheapest": about(selection.cheapest),
        "method": selection.method,
        "bias": selection.bias or None,
        "confirmed": [
            {"number": c.trial.number, "values": list(c.values), "mean": c.mean, "deviation": c.deviation}
            for c in repeats
        ],
        "directory": directory.as_posix(),
        "test_accuracy": found.metrics["accuracy"].value if found else None,
        "look": found.look if found else None,
    }


def show_choice(sweep: "Sweep", selection: "Selection", top: int) -> None:
    rows = [
        (
            c.trial.number,
            f"{c.trial.value:.4f}",
            c.standing,
            "" if c.p is None else f"{c.p:.2g}",
            "" if c.cost is None else f"{c.cost:.1f} s",
            _shown(c.trial),
        )
        for c in selection.candidates[:top]
    ]
    columns = ("trial", sweep.spec.metric.name, "against the best", "p (Holm)", "cost", "settings")
    render.table(f"sweep {sweep.id}", columns, rows, right=("trial", "p (Holm)", "cost"), drop=("cost", "p (Holm)"))
    not_significantly_worse, cheapest = selection.not_significantly_worse, selection.cheapest
    if len(selection.candidates) == 1:
        render.echo("it is the only complete trial so far")
    else:
        if selection.is_tested:
            others = ", ".join(str(candidate.trial.number) for candidate in not_significantly_worse[1:])
            number = pluralize(len(selection.candidates) - 1, "other trial")
            render.echo(
                f"not significantly different from the best: {len(not_significantly_worse) - 1} of {number}"
                + (f": {others}" if others else "")
            )
        render.echo(f"test: {selection.method}")
        render.warn(
            f"{selection.bias}; train it again with other seeds (--confirm 3), or evaluate it on the test set (--eval)"
        )
    if cheapest.cost is not None and selection.is_tested:
        render.echo(f"cheapest of them: trial {cheapest.trial.number}, {cheapest.cost:.1f} s, {_shown(cheapest.trial)}")


def show_repeats(sweep: "Sweep", repeats: "list[Replication]") -> None:
    rows = [
        (
            c.trial.number,
            f"{c.values[0]:.4f}",
            f"{c.mean:.4f}" + ("" if c.deviation is None else f" ± {c.deviation:.4f}"),
            ", ".join(f"{value:.4f}" for value in c.values[1:]),
        )
        for c in repeats
    ]
    render.table(
        "repeated with other seeds", ("trial", "in the sweep", "mean of the new seeds", "each"), rows, right=("trial",)
    )
    render.echo(f"best by the mean of the new seeds: trial {repeats[0].trial.number}, {_shown(repeats[0].trial)}")


def soup_json(soup: "Soup") -> dict[str, Any]:
    return {
        "directory": soup.directory.as_posix(),
        "members": soup.members,
        "candidates": soup.tried,
        "val_accuracy": soup.record.val_accuracy,
        "best_alone": soup.alone,
        "left_out": soup.left_out,
    }


def show_soup(soup: "Soup") -> None:
    accuracy = soup.record.val_accuracy or 0.0
    for run, why in soup.left_out.items():
        render.info(f"left out: {run}: {why}")
    render.echo(f"in it: {', '.join(soup.members)} ({len(soup.members)} of {soup.tried} runs that share a start)")
    render.echo(
        f"validation accuracy {accuracy:.4f}; {soup.members[0]}, the best of them, has {soup.alone:.4f} alone "
        f"({100 * (accuracy - soup.alone):+.2f} points; both in float32, as `eval` computes)"
    )
    render.warn("the validation images chose what is in it, so that figure is a little too good; the test set will say")
    render.echo(f"run:  {soup.directory}")
    render.info(f"next: inat-ft eval {soup.directory}")
