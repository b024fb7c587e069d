"""`inat-ft split`: split the images of a folder, write the manifest, and show the result."""

import shlex
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inat_ft.cli import options, render
from inat_ft.registry import FEATURES, get
from inat_ft.text import escape_unprintable, few, pluralize

if TYPE_CHECKING:
    from inat_ft.data.split import SplitResult


def split(
    ctx: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of class folders, or of train/ and val/ or test/ folders; or a CSV (path,label)."),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Fraction of each class, test images excluded, for validation.")
    ] = 0.2,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Fraction of each class to hold out as the test set; 0 disables it.",
            show_default="0.2 unless the data has a test set",
        ),
    ] = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, options.output("Manifest file to write.", show_default="splits/NAME OF THE FOLDER.csv")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Data source: image-folder, csv, or a plugin.", show_default="the first that recognizes DATA"
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Images to keep in one subset: a regular expression on file names, or a CSV (path,group)."),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            help="Reviewed CSV (path,verdict) of `inat-ft audit`. Verdicts: ok, drop, or a class.", metavar="FILE"
        ),
    ] = None,
    leakage: Annotated[
        Literal["drop", "keep", "error"],
        typer.Option(help="What to do with training images that are copies of test images."),
    ] = "drop",
    near: Annotated[
        bool,
        typer.Option(
            help="Search for near duplicates: resized, recompressed, gray, brighter or slightly cropped, but not mirrored."
        ),
    ] = True,
    classes_from: Annotated[
        Literal["kingdom", "phylum", "class", "order", "family", "genus", "species"] | None,
        typer.Option(
            help="Taxonomic rank to use as class: a column of the CSV, or from folders as in iNaturalist 2021."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out paths that match a glob pattern, such as '#recycle' or 'train/*_raw'. Can be repeated.",
            metavar="PATTERN",
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Leave out images with more pixels (width times height).")
    ] = 178_956_970,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a file is not a usable image.")] = False,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Decoding threads; 0 uses one per core.")] = 0,
    pack: Annotated[
        list[str] | None,
        typer.Option(
            help="Also cache the images at this size, such as 224 or 224:crop, for training. Can be repeated.",
            metavar="SIZE",
        ),
    ] = None,
    cache_dir: options.CacheDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a different manifest of the same name.")] = False,
    check: Annotated[
        Path | None, typer.Option(help="Verify that the files on disk match a manifest, and exit.", metavar="MANIFEST")
    ] = None,
    json: options.Json = False,
) -> None:
    """Split images into training, validation and test sets, and write a manifest.

    Each image is decoded once. Files that are not images are left out, and duplicates stay in one subset. If the data has no
    test set, 20% of each class is reserved for it.

    [dim]inat-ft split data/inaturalist_12K[/dim]
    [dim]inat-ft split photos --test-fraction 0.2 --group-by '^[^_]+'[/dim]
    [dim]inat-ft split --check splits/photos.csv[/dim]
    """
    from inat_ft.data.split import SplitOptions, split_images
    from inat_ft.errors import UsageError

    if (data is None) == (check is None):
        raise UsageError("pass either a folder to split, or a manifest to --check", "inat-ft split DATA")
    if check is not None:
        get(FEATURES, "check-split").load()(check, json)
    elif data is not None:
        given = {name: ctx.params[name] for name in SplitOptions.__dataclass_fields__}
        chosen = SplitOptions(**{**given, "exclude": tuple(exclude or ()), "pack": tuple(pack or ())})
        result = split_images(
            data, out, chosen, force=force, log=render.info, warn=render.warn, progress=render.progress
        )
        render.emit(json, result.to_dict(), lambda: _show(result))


def _show(result: "SplitResult") -> None:
    manifest, findings = result.manifest, result.findings
    render.table(result.table)
    most, fewest, ratio = result.imbalance
    if ratio > 1:
        times = f"{escape_unprintable(most)} has {ratio:.2f} times the training images of {escape_unprintable(fewest)}"
        render.echo(f"imbalance: {times}{'; see train --balance' if ratio >= 2 else ''}")
    else:
        render.echo("imbalance: none, every class has the same number of training images")
    _show_duplicates(result)
    if manifest.made["near_copies"]:
        render.info(get(FEATURES, "near-duplicates").load().summary)
    if made := manifest.made.get("corrections"):
        done = f"{pluralize(len(made['relabelled']), 'label')} changed, {pluralize(made['dropped'], 'image')} dropped"
        render.echo(f"corrections: {done}, by {made['file']}")
    reasons: dict[str | None, list[str]] = defaultdict(list)
    for left in manifest.left_out:
        reasons[left.reason].append(f"{left.path} ({left.text})")
    for files in sorted(reasons.values(), key=len, reverse=True):
        render.echo(f"left out: {pluralize(len(files), 'file')}: {few(files)}")
    if findings.classes_without_test:
        render.warn(f"no test images of {few(findings.classes_without_test)}")
    if not len(manifest.rows("test")):
        hint = "reserve it with --test-fraction 0.2, or add a test folder"
        render.echo(f"no test set: `inat-ft eval` requires one; {hint}")
    elif result.default_test_set:
        fraction = manifest.made["test_fraction"]
        render.echo(f"test set: {fraction:.0%} of each class reserved by default; for none: --test-fraction 0")
    render.echo(f"manifest: {manifest.path}{'' if result.is_new else ' (unchanged)'}")
    named = "" if manifest.path.parent == Path("splits") else f" --split {shlex.quote(str(manifest.path))}"
    render.info(f"next: inat-ft train --mode head{named}")


def _show_duplicates(result: "SplitResult") -> None:
    findings, kept = result.findings, set(result.manifest.paths)
    together = "" if findings.leaked or findings.leaked_val else ", kept in the same subset"
    for kind, groups in (("equal files", findings.exact_groups), ("near duplicates", findings.near_groups)):
        if groups:
            images = f"{sum(map(len, groups)):,} images in {pluralize(len(groups), 'group')}"
            render.echo(f"{kind}: {images}{together}: {few(groups[0])}")
    for name, pairs in (("test", findings.leaked), ("validation", findings.leaked_val)):
        for action in ("kept", "left out"):  # left out as a copy, or as a label conflict
            some = [pair for pair in pairs if (pair[0] in kept) == (action == "kept")]
            if some:
                example = " with ".join(map(escape_unprintable, some[0]))
                reason = f"copies of {name} images, or in a group with one, such as {example}"
                render.echo(f"train and {name} overlap: {pluralize(len(some), 'image')} {action}; {reason}")
    in_test = any(path in kept for group in findings.conflicts for path in group)
    removed = f", left out{' except in the test set' * in_test}"
    for kind, groups, action in (
        ("equal files", findings.conflicts, removed),
        ("near duplicates", findings.near_conflicts, together),
    ):
        if groups:
            where = pluralize(len(groups), "group")
            render.echo(f"label conflicts: {where} of {kind} with several labels{action}: {few(groups[0])}")
