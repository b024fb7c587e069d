"""`inat-ft split`: scan a folder, split it, write the manifest, show it."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.data.manifest import Manifest
    from inat_ft.data.split import Findings

_SHOWN = 5


def split(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of class folders, or with train/ and val/ or test/; or a CSV.", show_default=False),
    ] = None,
    val_fraction: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of each class to validate on.")] = 0.2,
    test_fraction: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, help="Share of each class to reserve for the test, if there is no test folder."),
    ] = 0.0,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="The manifest. Default: splits/<name of the folder>.csv", show_default=False)
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Keep together: a regular expression on file names, or a CSV of path,group.", show_default=False
        ),
    ] = None,
    leakage: Annotated[
        Literal["drop", "keep", "error"], typer.Option(help="Training images that are copies of test images.")
    ] = "drop",
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="Look for near copies too: resized, saved again.")
    ] = True,
    classes_from: Annotated[
        Literal["kingdom", "phylum", "class", "order", "family", "genus", "species"] | None,
        typer.Option(help="Classes by taxon, from folders named as iNaturalist 2021 does.", show_default=False),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Larger images (width times height) are left out.")
    ] = 178_956_970,
    strict: Annotated[bool, typer.Option("--strict", help="A file that is no usable image is an error.")] = False,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Threads that decode; 0 is one a core.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace another manifest of that name.")] = False,
    check: Annotated[
        Path | None,
        typer.Option(help="Hold a manifest against the disk instead.", metavar="MANIFEST", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Split images into train, validation and test, and write a manifest.

    Each image is decoded once; what is no image is left out, and copies stay on one side.

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
    from inat_ft.data.split import Options

    chosen = Options(val_fraction, test_fraction, seed, leakage, near, group_by)
    place = out or Path("splits") / f"{data.resolve().stem if data.is_file() else data.resolve().name}.csv"
    _split(data, place, chosen, classes_from, max_pixels, workers, strict, force, json)


def _split(
    data: Path,
    out: Path,
    chosen: Any,
    classes_from: str | None,
    max_pixels: int,
    workers: int,
    strict: bool,
    force: bool,
    json: bool,
) -> None:
    from inat_ft.data.manifest import write_manifest
    from inat_ft.data.scan import scan
    from inat_ft.data.sources import find_files
    from inat_ft.data.split import group_names, make_manifest
    from inat_ft.data.threads import num_cores
    from inat_ft.errors import DataError, UsageError

    if out.is_dir():
        raise UsageError(f"--out {out} is a folder", "name a file, such as splits/photos.csv")
    files = find_files(data, classes_from)
    groups = group_names(files, chosen.group_by)
    with render.progress("scanning") as tick:
        scanned = scan(files.root, files.paths, max_pixels, workers or num_cores(), chosen.near, tick)
    bad = [(path, why) for path, why in zip(files.paths, scanned.problems, strict=True) if why] + files.left_out
    if strict and bad:
        raise DataError(
            f"{len(bad)} files are no usable images: {bad[0][0]} ({bad[0][1]})",
            "leave out --strict to go on without them",
        )
    if len(bad) >= len(files.paths):
        raise DataError(f"none of the {len(files.paths)} files in {data} is a usable image: {bad[0][0]} ({bad[0][1]})")
    manifest, findings = make_manifest(files, scanned, chosen, out, groups)
    written = write_manifest(manifest, force)
    if json:
        render.as_json(_as_json(manifest, findings))
    else:
        _show(manifest, findings, written)


def _as_json(manifest: "Manifest", findings: "Findings") -> dict[str, Any]:
    return {
        "manifest": manifest.path.as_posix(),
        "fingerprint": manifest.fingerprint,
        "seed": manifest.seed,
        "layout": manifest.made["layout"],
        "classes": list(manifest.classes),
        "counts": manifest.counts(),
        "left_out": [{"path": path, "reason": reason} for path, reason in manifest.left_out],
        "exact_copies": findings.exact_groups,
        "near_copies": findings.near_groups,
        "leaked": [{"train": train, "test": test} for train, test in findings.leaked],
        "label_conflicts": findings.conflicts,
    }


def _show(manifest: "Manifest", findings: "Findings", written: bool) -> None:
    from inat_ft.data.manifest import SUBSETS

    counts = manifest.counts()
    rows: list[list[object]] = [
        [name, *(f"{row[subset]:,}" for subset in SUBSETS), f"{sum(row.values()):,}"] for name, row in counts.items()
    ]
    sums = [sum(row[subset] for row in counts.values()) for subset in SUBSETS]
    rows.append(["total", *(f"{number:,}" for number in sums), f"{sum(sums):,}"])
    render.table("", ("class", *SUBSETS, "all"), rows, right=(*SUBSETS, "all"))
    train = {name: row["train"] for name, row in counts.items()}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    ratio = train[most] / train[least]
    advice = "; see train --balance" if ratio >= 2 else ""
    even = "none, every class has as many training images"
    render.result(
        f"imbalance: {f'{most} has {ratio:.2f} times the training images of {least}{advice}' if ratio > 1 else even}"
    )
    _show_copies(findings)
    reasons = Counter(_kind(reason) for _, reason in manifest.left_out)
    for kind, number in reasons.most_common():
        named = [path for path, reason in manifest.left_out if _kind(reason) == kind]
        render.result(f"left out: {number:,} ({kind}): {_few(named)}")
    render.result(f"manifest: {manifest.path}{'' if written else ' (unchanged)'}")
    if not sums[SUBSETS.index("test")]:
        render.remark("there is no test set: --test-fraction reserves one")
    render.remark("next: inat-ft train --mode head")


def _kind(reason: str) -> str:
    return "copy of a test image" if reason.startswith("a copy of the test image") else reason


def _show_copies(findings: "Findings") -> None:
    for what, groups in (("equal files", findings.exact_groups), ("near copies", findings.near_groups)):
        if groups:
            render.result(
                f"{what}: {sum(map(len, groups)):,} images in {len(groups):,} groups, kept on one side: {_few(groups[0])}"
            )
    if findings.leaked:
        train, test = findings.leaked[0]
        render.result(
            f"train and test overlap: {len(findings.leaked):,} training images are copies, such as {train} of {test}"
        )
    if findings.conflicts:
        render.result(
            f"label conflicts: {len(findings.conflicts):,} files have several labels: {_few(findings.conflicts[0])}"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _check(path: Path, json: bool) -> None:
    from inat_ft.data.check import check_manifest
    from inat_ft.data.manifest import read_manifest
    from inat_ft.data.sources import find_files

    manifest = read_manifest(path)
    present = find_files(manifest.root).paths if manifest.made.get("layout") != "CSV" and manifest.root.is_dir() else []
    with render.progress("checking", "files") as tick:
        found = check_manifest(manifest, present, tick)
    if json:
        render.as_json({"missing": found.missing, "changed": found.changed, "new": found.new})
    else:
        for what, names in (("missing", found.missing), ("changed", found.changed), ("new", found.new)):
            if names:
                render.result(f"{what}: {len(names):,}: {_few(names)}")
        if not found:
            render.result(f"{len(manifest.paths):,} images are as {path} says")
    if found:
        raise typer.Exit(1)
