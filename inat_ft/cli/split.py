"""`inat-ft split`: split the images of a folder, write the manifest, and show the result."""

import shlex
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.data.split_result import SplitResult


def split(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of class folders, or of train/ and val/ or test/ folders; or a CSV (path,label).",
            show_default=False,
        ),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Fraction of each class used for validation.")
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
        Path | None, typer.Option(help="Manifest file to write.", show_default="splits/NAME OF THE FOLDER.csv")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Data source: image-folder, csv, or the name of a plugin.",
            show_default="the first that recognizes DATA",
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Images to keep in one subset: a regular expression on file names, or a CSV (path,group).",
            show_default=False,
        ),
    ] = None,
    leakage: Annotated[
        Literal["drop", "keep", "error"],
        typer.Option(help="What to do with training images that are copies of test images."),
    ] = "drop",
    near: Annotated[
        bool,
        typer.Option(
            "--near/--no-near",
            help="Search for near duplicates: resized, recompressed, brighter or slightly cropped. Mirror images are missed.",
        ),
    ] = True,
    classes_from: Annotated[
        Literal["kingdom", "phylum", "class", "order", "family", "genus", "species"] | None,
        typer.Option(help="Rank to use as class, for folders named as in iNaturalist 2021.", show_default=False),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out files and folders that match a glob pattern, such as '#recycle' or 'train/*_raw'; repeatable.",
            metavar="PATTERN",
            show_default=False,
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Leave out images with more pixels (width times height).")
    ] = 178_956_970,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a file is not a usable image.")] = False,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Decoding threads; 0 uses one per core.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a different manifest of the same name.")] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Verify that the files on disk match a manifest, and exit.", metavar="MANIFEST", show_default=False
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Split images into train, validation and test, and write a manifest.

    Each image is decoded once. Files that are not images are left out, and duplicates stay in one subset. If the data has no
    test set, 20 % of each class is reserved for it.

    [dim]inat-ft split data/inaturalist_12K[/dim]
    [dim]inat-ft split photos --test-fraction 0.2 --group-by '^[^_]+'[/dim]
    [dim]inat-ft split --check splits/photos.csv[/dim]
    """
    from inat_ft.errors import UsageError

    if (data is None) == (check is None):
        raise UsageError("pass either a folder to split, or a manifest to --check", "inat-ft split DATA")
    if check is not None:
        _check(check, json)
        return
    assert data is not None
    from inat_ft.data.split import SplitOptions, split_images

    chosen = SplitOptions(
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        leakage=leakage,
        near=near,
        group_by=group_by,
        source=source,
        classes_from=classes_from,
        exclude=tuple(exclude or ()),
        max_pixels=max_pixels,
        strict=strict,
        workers=workers,
    )
    result = split_images(data, out, chosen, force=force, log=render.info, warn=render.warn, progress=render.progress)
    if json:
        render.echo_json(result.to_dict())
    else:
        _show(result)


def _show(result: "SplitResult") -> None:
    from inat_ft.text import escape_unprintable, few

    manifest, findings = result.manifest, result.findings
    table = result.table
    render.table("", table.names, table.cells(), right=table.names[1:])
    most, fewest, ratio = result.imbalance
    if ratio > 1:
        times = f"{escape_unprintable(most)} has {ratio:.2f} times the training images of {escape_unprintable(fewest)}"
        render.echo(f"imbalance: {times}{'; see train --balance' if ratio >= 2 else ''}")
    else:
        render.echo("imbalance: none, every class has the same number of training images")
    _show_duplicates(result)
    if manifest.made["near_copies"]:
        from inat_ft.images.near_duplicates import FOUND_COPIES, MISSED_COPIES

        render.info(
            f"near duplicates found: {', '.join(FOUND_COPIES)}; most others are missed: {', '.join(MISSED_COPIES)}"
        )
    _show_left_out(result)
    if findings.classes_without_test:
        render.warn(f"no test images of {few(findings.classes_without_test)}")
    if not len(manifest.rows("test")):
        render.echo(
            "no test set: `inat-ft eval` requires one; reserve it with --test-fraction 0.2, or add a test folder"
        )
    elif result.default_test_set:
        fraction = manifest.made["test_fraction"]
        render.echo(f"test set: {fraction:.0%} of each class reserved by default; for none: --test-fraction 0")
    render.echo(f"manifest: {manifest.path}{'' if result.is_new else ' (unchanged)'}")
    is_found = manifest.path.parent == Path("splits")
    named = "" if is_found else f" --split {shlex.quote(str(manifest.path))}"
    render.info(f"next: inat-ft train --mode head{named}")


def _show_left_out(result: "SplitResult") -> None:
    from inat_ft.text import few, pluralize

    reasons: dict[str | None, list[str]] = defaultdict(list)
    for left in result.manifest.left_out:
        reasons[left.reason].append(f"{left.path} ({left.text})")
    for files in sorted(reasons.values(), key=len, reverse=True):
        render.echo(f"left out: {pluralize(len(files), 'file')}: {few(files)}")


def _show_duplicates(result: "SplitResult") -> None:
    from inat_ft.text import escape_unprintable, few, pluralize

    findings, kept = result.findings, set(result.manifest.paths)
    together = "" if findings.leaked or findings.leaked_val else ", kept in the same subset"
    for kind, groups in (("equal files", findings.exact_groups), ("near duplicates", findings.near_groups)):
        if groups:
            images = f"{sum(map(len, groups)):,} images in {pluralize(len(groups), 'group')}"
            render.echo(f"{kind}: {images}{together}: {few(groups[0])}")
    for name, pairs in (("test", findings.leaked), ("validation", findings.leaked_val)):
        for action, some in (
            ("kept", [pair for pair in pairs if pair[0] in kept]),
            ("left out", [pair for pair in pairs if pair[0] not in kept]),  # as a copy, or as a label conflict
        ):
            if some:
                train, other = map(escape_unprintable, some[0])
                render.echo(
                    f"train and {name} overlap: {pluralize(len(some), 'image')} {action}; copies of {name} images, or in a "
                    f"group with one, such as {train} with {other}"
                )
    in_test = any(path in kept for group in findings.conflicts for path in group)
    for kind, groups, action in (
        ("equal files", findings.conflicts, f", left out{' except in the test set' * in_test}"),
        ("near duplicates", findings.near_conflicts, together),
    ):
        if groups:
            where = pluralize(len(groups), "group")
            render.echo(f"label conflicts: {where} of {kind} with several labels{action}: {few(groups[0])}")


def _check(path: Path, json: bool) -> None:
    from inat_ft.data.manifest import read_manifest
    from inat_ft.data.verify import check_manifest
    from inat_ft.text import few

    manifest = read_manifest(path)
    with render.progress("checking", "files") as update:
        found = check_manifest(manifest, update)
    kinds = {"missing": found.missing, "changed": found.changed, "new": found.new}
    if json:
        render.echo_json(kinds)
    elif not found:
        render.echo(f"all {len(manifest.paths):,} images match {path}")
    else:
        for kind, names in kinds.items():
            if names:
                render.echo(f"{kind}: {len(names):,}: {few(names)}")
    if found:
        raise typer.Exit(1)
