"""`inat-ft tune`: from a folder of images to a chosen model, in a given time."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft_sweeps.api import TuneResult

    from inat_ft_tune.session import Session


def tune(
    data: Annotated[
        Path | None, typer.Argument(help="Folder of images, or a manifest from `inat-ft split`.", show_default=False)
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for everything, such as 90s, 30m or 1h30m.", show_default="30m")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="Strategy to try besides the head. Can be repeated.", show_default="all with a search space"),
    ] = None,
    out: Annotated[
        Path | None, options.output("Folder for the search and its report.", "folder", show_default="tunes/NAME")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Continue an interrupted search, given by its folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and show the plan; do not train.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Evaluate the chosen run on the test set. Evaluations are counted.")
    ] = False,
    config: options.Config = None,
    backbone: options.Backbone = None,
    set_: options.Set = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    runs_dir: options.RunsDir = Path("runs"),
    cache_dir: options.CacheDir = None,
) -> None:
    """Choose and train a model in a given time.

    Splits the images if necessary, measures how long each part takes, shows the plan, searches heads and strategies, repeats
    the best with new seeds, and trains the choice. After an interruption, the same command continues.

    [dim]inat-ft tune photos --budget 30m[/dim]
    [dim]inat-ft tune splits/photos.csv --budget 2h --backbone convnext_tiny[/dim]
    """
    started = time.monotonic()
    from inat_ft.errors import UsageError
    from inat_ft.paths import cache_folder
    from inat_ft.settings import parse_override
    from inat_ft_tune.tune import Request, open_session, parse_duration

    if resume is not None and (data or out or config or backbone or set_ or strategy or seed):
        problem = "--resume takes the data and the settings from the folder"
        raise UsageError(problem, f"run: inat-ft tune --resume {resume}")
    given: list[tuple[str, Any]] = [("model.backbone", backbone)] if backbone else []
    request = Request(
        data,
        None if budget is None else parse_duration(budget),
        resume or out,
        strategy or (),
        config,
        [*given, *map(parse_override, set_ or ())],
        seed,
        runs_dir,
        cache_folder(cache_dir),
    )
    session = open_session(request, started, render.info, render.progress, render.warn)
    with session.lock():
        _run(session, dry_run, evaluate, json)


def _run(session: "Session", dry_run: bool, evaluate: bool, json: bool) -> None:
    from inat_ft_tune.tune import plan_dict, prepare_plan, require_test_images, tune_session

    try:
        if evaluate:
            require_test_images(session)
        if dry_run:
            plan = prepare_plan(session)
            session.save(is_counted=False)
            if json:
                render.echo_json(plan_dict(session, plan))
            return
        result = tune_session(session)
    except KeyboardInterrupt:
        session.save()
        render.warn(f"stopped; to continue: inat-ft tune --resume {session.folder}")
        raise
    accuracy = _evaluate(result) if evaluate else None
    render.emit(json, {**result.details, "test": accuracy}, lambda: _show(session, result, accuracy))


def _evaluate(result: "TuneResult") -> dict[str, Any]:
    from inat_ft.evaluation.evaluate import evaluate_run

    with render.progress("evaluating on test") as progress:
        found = evaluate_run(result.run.directory, "test", progress=progress).evaluation
    accuracy = found.metrics["accuracy"]
    return {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high, "look": found.look}


def _show(session: "Session", result: "TuneResult", test: dict[str, Any] | None) -> None:
    from inat_ft.text import pluralize
    from inat_ft_tune.conclusion import time_text
    from inat_ft_tune.report import next_command

    render.echo(result.summary)
    render.echo(f"run:    {result.run.directory}")
    render.echo(f"report: {result.report}")
    render.echo(f"time:   {time_text(session.state)}")
    if test is None:
        render.info(f"next: {next_command(session.state)}")
    else:
        interval = f"95% interval {test['low']:.4f} to {test['high']:.4f}"
        times = pluralize(test["look"] or 1, "time")
        render.echo(f"test accuracy: {test['accuracy']:.4f} ({interval}; test set evaluated {times})")
        render.info(f"next: inat-ft predict {result.run.directory} PHOTOS")
