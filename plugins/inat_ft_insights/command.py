"""`inat-ft audit`, `inat-ft learning-curve` and `inat-ft suggest`: questions that frozen features answer."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from os import PathLike

    from inat_ft.config import RunConfig
    from inat_ft.setup import TrainCallbacks
    from inat_ft.tables import Table
    from inat_ft_insights.api import AuditResult, LearningCurveResult, SuggestResult

_SHOWN = 20


class Subset(StrEnum):
    """The choices of --subset."""

    train = "train"
    val = "val"
    test = "test"


OutDir = Annotated[Path | None, options.output("Folder for the files.", "folder", show_default="insights/COMMAND-NAME")]


def audit(
    split: Annotated[Path, typer.Argument(help="Manifest from `inat-ft split`.")],
    subset: Annotated[
        list[Subset] | None,
        typer.Option(help="Subset to audit. Can be repeated.", show_default="train and val"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of images of each kind on the page.")] = 200,
    out: OutDir = None,
    config: options.Config = None,
    backbone: options.Backbone = None,
    set_: options.Set = None,
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
) -> None:
    """Find suspected label errors, outliers and ambiguous images.

    Writes an HTML page with thumbnails, the worst first, and a CSV. Fill in its column `verdict` with ok, drop or the correct
    class, and apply it with `inat-ft split --corrections`. Test images are audited only with --subset test.

    [dim]inat-ft audit splits/photos.csv[/dim]
    """
    from inat_ft_insights import api

    subsets = [each.value for each in dict.fromkeys(subset or (Subset.train, Subset.val))]
    if "test" in subsets:
        render.warn(
            "test labels that are corrected change the test set: evaluate all runs again before you compare them"
        )
    settings = _settings(config, backbone, set_)
    found = api.audit(
        split, subsets, limit=limit, out=out, config=settings, cache_dir=cache_dir, callbacks=_callbacks()
    )
    render.emit(json, found.to_dict(), lambda: _show_audit(found))


def learning_curve(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run whose network and split are used.", show_default="the network and split of the options"
        ),
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="Manifest from `inat-ft split`.", show_default="the newest in splits/")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.9999,
            help="Target accuracy, such as 0.95: print the number of images per class to reach it.",
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="Strategy. Any other than head is trained once for each draw and size.")
    ] = "head",
    draws: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1000,
            help="Number of random draws of the training subsets.",
            show_default="10, or 3 unless the strategy is head",
        ),
    ] = None,
    sizes: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=20,
            help="Number of sizes of the training subsets.",
            show_default="9, or 5 unless the strategy is head",
        ),
    ] = None,
    out: OutDir = None,
    config: options.Config = None,
    backbone: options.Backbone = None,
    set_: options.Set = None,
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
) -> None:
    """Measure accuracy against images per class, and extrapolate it.

    Trains on nested subsets of the training images, and writes a picture and a CSV. By default, fits heads to frozen
    features, which takes seconds. The accuracy is that on the validation images; test images are not used. After an
    interruption, the same command continues.

    [dim]inat-ft learning-curve --target 0.95[/dim]
    [dim]inat-ft learning-curve runs/resnet50-head-1[/dim]
    [dim]inat-ft learning-curve --mode partial --set optim.epochs=5[/dim]
    """
    from inat_ft_insights import api

    given: list[tuple[str, Any]] = [("strategy.name", mode), *([("data.split", str(split))] if split else [])]
    settings = _settings(api.run_settings(run, config), backbone, set_, given)
    api.require_mode(settings, mode)
    try:
        found = api.learning_curve(
            mode=mode, target=target, draws=draws, sizes=sizes, out=out, config=settings, cache_dir=cache_dir,
            callbacks=_callbacks(),
        )  # fmt: skip
    except KeyboardInterrupt as stopped:
        render.warn("; ".join(["stopped", *getattr(stopped, "__notes__", [])]))
        raise
    render.emit(json, found.to_dict(), lambda: _show_curve(found))


def _show_curve(found: "LearningCurveResult") -> None:
    render.table(found.table)
    render.echo(found.summary)
    render.echo(f"picture: {found.picture}")
    render.echo(f"points: {found.csv}")


def _settings(
    config: "str | PathLike[str] | RunConfig | None",
    backbone: str | None,
    set_: list[str] | None,
    given: Sequence[tuple[str, Any]] = (),
) -> "RunConfig":
    from inat_ft.settings import load_config, parse_override

    network = [("model.backbone", backbone)] if backbone else []
    return load_config(config, [*network, *given, *map(parse_override, set_ or ())])


def _callbacks() -> "TrainCallbacks":
    from inat_ft.setup import TrainCallbacks

    return TrainCallbacks(log=_log, progress=render.progress)


def _log(line: str) -> None:
    """Show a message; a warning is shown also if the output is quiet."""
    text = line.removeprefix("warning: ")
    (render.info if text == line else render.warn)(text)


def _shown(found: "AuditResult | SuggestResult") -> "Table":
    """Return the first rows of the table."""
    from inat_ft.tables import Table

    return Table(found.table.columns, [list(row.values()) for row in found.table[:_SHOWN]])


def _show_audit(found: "AuditResult") -> None:
    if shown := _shown(found):
        render.table(shown)
    if len(found.suspects) > _SHOWN:
        render.echo(f"and {len(found.suspects) - _SHOWN:,} more in {found.csv}")
    render.echo(found.summary)
    if found.unchecked:
        render.warn(f"not checked, because they have a single image or group: {', '.join(found.unchecked)}")
    render.echo(f"page: {found.page}")
    render.echo(f"verdicts: {found.csv}")
    render.info(f"next: fill in the column verdict, then: inat-ft split DATA --corrections {found.csv} --force")


def suggest(
    run: Annotated[Path, typer.Argument(help="Run whose network and split are used.")],
    photos: Annotated[Path, typer.Argument(help="Folder of unlabeled photographs.")],
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Number of photographs to choose.")] = 100,
    out: OutDir = None,
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
) -> None:
    """Choose unlabeled photographs to label next.

    Chooses photographs that a head on frozen features is unsure about and that differ from each other. Writes a CSV and
    a page with thumbnails. Photographs that are already in the split are skipped.

    [dim]inat-ft suggest runs/resnet50-head-1 new-photos --count 100[/dim]
    """
    from inat_ft_insights import api

    found = api.suggest(run, photos, count, out=out, cache_dir=cache_dir, callbacks=_callbacks())
    render.emit(json, found.to_dict(), lambda: _show_suggestions(found))


def _show_suggestions(found: "SuggestResult") -> None:
    render.table(_shown(found))
    if len(found.chosen) > _SHOWN:
        render.echo(f"and {len(found.chosen) - _SHOWN:,} more in {found.csv}")
    render.echo(found.summary)
    render.echo(f"page: {found.page}")
    render.echo(f"table: {found.csv}")
