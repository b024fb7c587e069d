"""`inat-ft fetch`: download a data set, or write an embedded one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from inat_ft.cli import options, render


def fetch(
    name: Annotated[
        Literal["inat12k", "digits"], typer.Argument(help="inat12k (3.8 GB download) or digits (no download).")
    ],
    to: Annotated[Path, typer.Option(help="Folder of the data set; created if it does not exist.")] = Path("data"),
    url: Annotated[
        str | None,
        typer.Option(help="Address of a mirror of the inat12k archive.", show_default="W&B's public bucket"),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Expected SHA-256 of the archive, 64 hexadecimal digits.", show_default=False)
    ] = None,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Keep the archive after unpacking it.")] = False,
    json: options.Json = False,
) -> None:
    """Download a data set. An interrupted download is resumed; a complete data set is not fetched again.

    [dim]inat-ft fetch inat12k --to data/[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft_datasets import datasets

    if name == "digits":
        if url or sha256 or keep_archive:
            raise UsageError(
                "the digits are not downloaded: there is no archive", "remove --url, --sha256 and --keep-archive"
            )
        done = datasets.fetch_digits(to)
    else:
        done = datasets.fetch_inat12k(
            to,
            datasets.INAT12K_URL if url is None else url,
            sha256=sha256,
            keep_archive=keep_archive,
            log=render.info,
            progress=render.progress,
        )
    if done.warning:
        render.warn(done.warning)
    if json:
        render.echo_json({"folder": done.folder.as_posix(), "images": done.num_images, "fetched": done.new})
        return
    render.echo(f"{done.folder}: {done.num_images:,} images{'' if done.new else ', already complete'}")
    render.info(f"next: inat-ft split {done.folder}")
