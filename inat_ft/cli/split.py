"""`inat-ft split`: scan a folder, split it, write the manifest, show it."""

import os
import shlex
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.data.manifest import Manifest
    from inat_ft.data.sources.base import Files
    from inat_ft.data.split import Findings, Options
    from inat_ft.images.scan import Scan

_SHOWN = 5


def split(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of class folders, or with train/ and val/ or test/; or a CSV.", show_default=False),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Fraction of each class for validation.")
    ] = 0.2,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Fraction of each class reserved for the test; 0: none. Default: 0.2, unless a test set is given.",
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="The manifest.", show_default="splits/NAME OF THE FOLDER.csv")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Keep together: a regular expression on file names, or a CSV of path,group.", show_default=False
        ),
    ] = None,
    leakage: Annotated[
        Literal["drop", "keep", "error"], typer.Option(help="TrainState images that are copies of test images.")
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
        typer.Option(help="Classes by taxon, from folders named as iNaturalist 2021 does.", show_default=False),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out files and folders that match a glob pattern, such as '#recycle' or 'train/*_raw'; repeatable.",
            metavar="PATTERN",
            show_default=False,
        ),
    ] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Leave out larger images (width times height).")] = 178_956_970,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a file is not a usable image.")] = False,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Threads that decode; 0 is one a core.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace another manifest of that name.")] = False,
    check: Annotated[
        Path | None,
        typer.Option(help="Compare a manifest with the disk instead.", metavar="MANIFEST", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Split images into train, validation and test, and write a manifest.

    Each image is decoded once; files that are not images are left out, and copies stay in one subset. Without a test set,
    20 % of each class are reserved for it.

    [dim]inat-ft split data/inaturalist_12K[/dim]
    [dim]inat-ft split photos --test-fraction 0.2 --group-by '^[^_]+'[/dim]
    [dim]inat-ft split --check splits/photos.csv[/dim]
    """
    from inat_ft.errors import UsageError

    if (data is None) == (check is None):
        raise UsageError("name a folder to split, or a manifest to --check", "inat-ft split DATA")
    if check is not None:
        _check(check, json)
        return
    assert data is not None
    from inat_ft.data.manifest import write_manifest
    from inat_ft.data.sources.find import find_images
    from inat_ft.data.split import Options, default_test_fraction

    named = Path(os.path.abspath(data))  # as typed: a link keeps its name
    place = out or Path("splits") / f"{named.stem if data.is_file() else named.name or 'images'}.csv"
    _require_place(data, place)
    if val_fraction + (test_fraction or 0) >= 1:
        raise UsageError(
            f"--val-fraction {val_fraction} and --test-fraction {test_fraction} leave nothing to train on", "lower one"
        )
    files = find_images(data, classes_from, skip=place, exclude=exclude or ())
    reserved = default_test_fraction(files) if test_fraction is None else test_fraction
    chosen = Options(val_fraction, reserved, seed, leakage, near, group_by)
    manifest, findings = _split(files, chosen, place, max_pixels, workers, strict)
    written = write_manifest(manifest, force)
    if json:
        render.echo_json(_as_json(manifest, findings))
    else:
        _show(manifest, findings, written, by_default=test_fraction is None)


def _require_place(data: Path, out: Path) -> None:
    from inat_ft.data.manifest import require_place
    from inat_ft.errors import UsageError

    require_place(out)
    if data.is_file() and out.exists() and out.samefile(data):
        raise UsageError(f"the manifest would take the place of {data}", "name another file with --out")


def _split(
    files: "Files", chosen: "Options", out: Path, max_pixels: int, workers: int, strict: bool
) -> "tuple[Manifest, Findings]":
    from inat_ft.data.classes import check_classes
    from inat_ft.data.groups import group_names
    from inat_ft.data.split import check_fractions, make_manifest
    from inat_ft.images.scan import scan
    from inat_ft.threads import num_cores

    check_fractions(files, chosen)
    groups = group_names(files, chosen.group_by, render.info)
    for warning in check_classes(files, chosen.test_fraction):
        render.warn(warning)
    with render.progress("scanning") as tick:
        scanned = scan(files.root, files.paths, max_pixels, workers or num_cores(), chosen.near, tick)
    _refuse(files, scanned, strict)
    return make_manifest(files, scanned, chosen, out, groups)


def _refuse(files: "Files", scanned: "Scan", strict: bool) -> None:
    from inat_ft.data.sources.base import Reason
    from inat_ft.errors import DataError
    from inat_ft.images.opening import ProblemKind

    bad = [(path, str(why)) for path, why in zip(files.paths, scanned.problems, strict=True) if why]
    if len(bad) == len(files.paths):
        too_large = any(why and why.kind is ProblemKind.TOO_LARGE for why in scanned.problems)
        raise DataError(
            f"none of the {len(bad):,} files in {files.root / files.csv} is a usable image: {bad[0][0]} ({bad[0][1]})",
            "allow larger ones: --max-pixels" if too_large else "",
        )
    bad += [(left.path, left.text) for left in files.left_out if left.reason is not Reason.EXCLUDED]
    if strict and bad:
        lines = [f"{path} ({why})" for path, why in bad[:_SHOWN]]
        more = ["..."] if len(bad) > _SHOWN else []
        raise DataError(
            "\n".join([f"{len(bad):,} files are not usable images: {lines[0]}", *lines[1:], *more]),
            "omit --strict to continue without them",
        )


def _as_json(manifest: "Manifest", findings: "Findings") -> dict[str, Any]:
    return {
        "manifest": manifest.path.as_posix(),
        "fingerprint": manifest.fingerprint,
        "seed": manifest.seed,
        "layout": manifest.made["layout"],
        "test_fraction": manifest.made["test_fraction"],
        "classes": list(manifest.classes),
        "counts": manifest.counts(),
        "imbalance": _imbalance(manifest)[2],
        "left_out": [{"path": left.path, "reason": left.text} for left in manifest.left_out],
        "exact_copies": findings.exact_groups,
        "near_copies": findings.near_groups,
        "leaked": [{"train": train, "test": test} for train, test in findings.leaked],
        "leaked_to_val": [{"train": train, "val": val} for train, val in findings.leaked_val],
        "label_conflicts": findings.conflicts,
        "near_label_conflicts": findings.near_conflicts,
        "classes_without_test": findings.classes_without_test,
    }


def _show(manifest: "Manifest", findings: "Findings", written: bool, by_default: bool) -> None:
    from inat_ft.data.manifest import SUBSETS
    from inat_ft.text import escape_unprintable, few

    counts = manifest.counts()
    rows: list[list[object]] = [
        [escape_unprintable(name), *(f"{row[subset]:,}" for subset in SUBSETS), f"{sum(row.values()):,}"]
        for name, row in counts.items()
    ]
    sums = [sum(row[subset] for row in counts.values()) for subset in SUBSETS]
    rows.append(["total", *(f"{number:,}" for number in sums), f"{sum(sums):,}"])
    render.table("", ("class", *SUBSETS, "all"), rows, right=(*SUBSETS, "all"))
    most, least, ratio = _imbalance(manifest)
    advice = "; see train --balance" if ratio >= 2 else ""
    more = (
        f"{escape_unprintable(most)} has {ratio:.2f} times the training images of {escape_unprintable(least)}{advice}"
    )
    render.echo(f"imbalance: {more if ratio > 1 else 'none, every class has as many training images'}")
    _show_copies(manifest, findings)
    if manifest.made["near_copies"]:
        from inat_ft.images.near_duplicates import FOUND_COPIES, MISSED_COPIES

        render.info(
            f"near duplicates found: {', '.join(FOUND_COPIES)}; most others are missed: {', '.join(MISSED_COPIES)}"
        )
    kinds: dict[str, list[str]] = defaultdict(list)
    for left in manifest.left_out:
        kinds[left.text.partition(": ")[0]].append(left.path)
    for kind, paths in sorted(kinds.items(), key=lambda item: -len(item[1])):
        render.echo(f"left out: {len(paths):,} ({kind}): {few(paths)}")
    if findings.classes_without_test:
        render.warn(f"no test images of {few(findings.classes_without_test)}")
    _show_test_set(manifest, sums[SUBSETS.index("test")], by_default)
    render.echo(f"manifest: {manifest.path}{'' if written else ' (unchanged)'}")
    is_found = manifest.path.parent == Path("splits")
    named = "" if is_found else f" --split {shlex.quote(str(manifest.path))}"
    render.info(f"next: inat-ft train --mode head{named}")


def _show_test_set(manifest: "Manifest", num_test: int, by_default: bool) -> None:
    fraction = manifest.made["test_fraction"]
    if not num_test:
        render.echo(
            "no test set: `inat-ft eval` will need one; reserve it here with --test-fraction 0.2, or add a test folder"
        )
    elif fraction and by_default:
        render.echo(
            f"test set: {fraction:.0%} of each class reserved by default, since none is given; --test-fraction 0: none"
        )


def _imbalance(manifest: "Manifest") -> tuple[str, str, float]:
    """The classes with the most and the fewest training images, and how many times as many the first has."""
    train = {name: row["train"] for name, row in manifest.counts().items()}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    return most, least, train[most] / train[least]


def _show_copies(manifest: "Manifest", findings: "Findings") -> None:
    from inat_ft.text import escape_unprintable, few, pluralize

    kept = set(manifest.paths)
    one_side = "" if findings.leaked or findings.leaked_val else ", kept on one side"
    for what, groups in (("equal files", findings.exact_groups), ("near copies", findings.near_groups)):
        if groups:
            render.echo(
                f"{what}: {sum(map(len, groups)):,} images in {pluralize(len(groups), 'group')}{one_side}: {few(groups[0])}"
            )
    for name, pairs in (("test", findings.leaked), ("validation", findings.leaked_val)):
        for done, some in (
            ("kept", [pair for pair in pairs if pair[0] in kept]),
            ("left out", [pair for pair in pairs if pair[0] not in kept]),  # for that, or as a label conflict
        ):
            if some:
                render.echo(
                    f"train and {name} overlap: {pluralize(len(some), 'image')} {done}, copies of {name} images or in one "
                    f"group with them, such as {escape_unprintable(some[0][0])} with {escape_unprintable(some[0][1])}"
                )
    in_test = any(path in kept for group in findings.conflicts for path in group)
    for what, groups, done in (
        ("equal files", findings.conflicts, f", left out{' save in the test set' * in_test}"),
        ("near copies", findings.near_conflicts, one_side),
    ):
        if groups:
            render.echo(
                f"label conflicts: {pluralize(len(groups), 'time')} {what} have several labels{done}: {few(groups[0])}"
            )


def _check(path: Path, json: bool) -> None:
    from inat_ft.data.manifest import read_manifest
    from inat_ft.data.verify import check_manifest
    from inat_ft.text import few

    manifest = read_manifest(path)
    with render.progress("checking", "files") as tick:
        found = check_manifest(manifest, tick)
    if json:
        render.echo_json({"missing": found.missing, "changed": found.changed, "new": found.new})
    else:
        for what, names in (("missing", found.missing), ("changed", found.changed), ("new", found.new)):
            if names:
                render.echo(f"{what}: {len(names):,}: {few(names)}")
        if not found:
            render.echo(f"{len(manifest.paths):,} images are as {path} says")
    if found:
        raise typer.Exit(1)
