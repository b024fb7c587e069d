"""`inat-ft split`: scan a folder, split it, write the manifest, show it."""

import os
from collections import defaultdict
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
        Path | None, typer.Option(help="The manifest.", show_default="splits/NAME OF THE FOLDER.csv")
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
    named = Path(os.path.abspath(data))  # as typed: a link keeps its name
    place = out or Path("splits") / f"{named.stem if data.is_file() else named.name or 'images'}.csv"
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
    from inat_ft.data.grouping import group_names
    from inat_ft.data.manifest import require_place, write_manifest
    from inat_ft.data.overheard import overheard
    from inat_ft.data.scan import scan
    from inat_ft.data.sources import find_files
    from inat_ft.data.split import check_fractions, make_manifest
    from inat_ft.data.threads import num_cores
    from inat_ft.errors import UsageError

    require_place(out)
    if data.is_file() and out.exists() and out.samefile(data):
        raise UsageError(f"the manifest would take the place of {data}", "name another file with --out")
    files = find_files(data, classes_from, skip=out)
    check_fractions(files, chosen)
    groups = group_names(files, chosen.group_by, render.remark)
    import torchvision.io  # noqa: F401  takes a second, which is no part of scanning

    with overheard(), render.progress("scanning") as tick:  # in this order: a bar keeps the stderr that it finds
        scanned = scan(files.root, files.paths, max_pixels, workers or num_cores(), chosen.near, tick)
    bad = [(path, why) for path, why in zip(files.paths, scanned.problems, strict=True) if why]
    _refuse(data, bad, len(files.paths), files.left_out if strict else [], strict)
    manifest, findings = make_manifest(files, scanned, chosen, out, groups)
    written = write_manifest(manifest, force)
    if json:
        render.as_json(_as_json(manifest, findings))
    else:
        _show(manifest, findings, written)


def _refuse(data: Path, bad: list[tuple[str, str]], count: int, others: list[tuple[str, str]], strict: bool) -> None:
    from inat_ft.errors import DataError

    if len(bad) == count:
        too_large = any(" pixels: " in why for _, why in bad)
        raise DataError(
            f"none of the {count:,} files in {data} is a usable image: {bad[0][0]} ({bad[0][1]})",
            "allow larger ones: --max-pixels" if too_large else "",
        )
    bad = bad + others
    if strict and bad:
        lines = [f"{path} ({why})" for path, why in bad[:_SHOWN]]
        more = ["..."] if len(bad) > _SHOWN else []
        raise DataError(
            "\n".join([f"{len(bad):,} files are no usable images: {lines[0]}", *lines[1:], *more]),
            "leave out --strict to go on without them",
        )


def _as_json(manifest: "Manifest", findings: "Findings") -> dict[str, Any]:
    return {
        "manifest": manifest.path.as_posix(),
        "fingerprint": manifest.fingerprint,
        "seed": manifest.seed,
        "layout": manifest.made["layout"],
        "classes": list(manifest.classes),
        "counts": manifest.counts(),
        "imbalance": _imbalance(manifest)[2],
        "left_out": [{"path": path, "reason": reason} for path, reason in manifest.left_out],
        "exact_copies": findings.exact_groups,
        "near_copies": findings.near_groups,
        "leaked": [{"train": train, "test": test} for train, test in findings.leaked],
        "leaked_to_val": [{"train": train, "val": val} for train, val in findings.leaked_val],
        "label_conflicts": findings.conflicts,
        "near_label_conflicts": findings.near_conflicts,
        "classes_without_test": findings.untested,
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
    most, least, ratio = _imbalance(manifest)
    advice = "; see train --balance" if ratio >= 2 else ""
    even = "none, every class has as many training images"
    render.result(
        f"imbalance: {f'{most} has {ratio:.2f} times the training images of {least}{advice}' if ratio > 1 else even}"
    )
    _show_copies(manifest, findings)
    kinds: dict[str, list[str]] = defaultdict(list)
    for path, reason in manifest.left_out:
        kinds[reason.partition(": ")[0]].append(path)
    for kind, paths in sorted(kinds.items(), key=lambda item: -len(item[1])):
        render.result(f"left out: {len(paths):,} ({kind}): {_few(paths)}")
    if findings.untested:
        render.warn(f"no test images of {_few(findings.untested)}")
    render.result(f"manifest: {manifest.path}{'' if written else ' (unchanged)'}")
    if not sums[SUBSETS.index("test")]:
        render.remark("there is no test set: --test-fraction reserves one")
    render.remark("next: inat-ft train --mode head")


def _imbalance(manifest: "Manifest") -> tuple[str, str, float]:
    """The classes with the most and the fewest training images, and how many times as many the first has."""
    train = {name: row["train"] for name, row in manifest.counts().items()}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    return most, least, train[most] / train[least]


def _show_copies(manifest: "Manifest", findings: "Findings") -> None:
    from inat_ft.data.wording import counted

    kept = set(manifest.paths)
    one_side = "" if findings.leaked or findings.leaked_val else ", kept on one side"
    for what, groups in (("equal files", findings.exact_groups), ("near copies", findings.near_groups)):
        if groups:
            render.result(
                f"{what}: {sum(map(len, groups)):,} images in {counted(len(groups), 'group')}{one_side}: {_few(groups[0])}"
            )
    for name, pairs in (("test", findings.leaked), ("validation", findings.leaked_val)):
        for done, some in (
            ("kept", [pair for pair in pairs if pair[0] in kept]),
            ("left out", [pair for pair in pairs if pair[0] not in kept]),  # for that, or as a label conflict
        ):
            if some:
                render.result(
                    f"train and {name} overlap: {counted(len(some), 'image')} {done}, copies of {name} images or in one "
                    f"group with them, such as {some[0][0]} with {some[0][1]}"
                )
    in_test = any(path in kept for group in findings.conflicts for path in group)
    for what, groups, done in (
        ("equal files", findings.conflicts, f", left out{' save in the test set' * in_test}"),
        ("near copies", findings.near_conflicts, one_side),
    ):
        if groups:
            render.result(
                f"label conflicts: {counted(len(groups), 'time')} {what} have several labels{done}: {_few(groups[0])}"
            )


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _check(path: Path, json: bool) -> None:
    from inat_ft.data.check import check_manifest
    from inat_ft.data.manifest import read_manifest

    manifest = read_manifest(path)
    with render.progress("checking", "files") as tick:
        found = check_manifest(manifest, tick)
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
