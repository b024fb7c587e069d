"""`inat-ft fetch`: bring a data set here."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from inat_ft.cli import options, render


def fetch(
    name: Annotated[
        Literal["inat12k", "digits"], typer.Argument(help="inat12k (3.8 GB download) or digits (embedded).")
    ],
    to: Annotated[Path, typer.Option(help="Folder to put it in; made when it is not there.")] = Path("data"),
    url: Annotated[
        str | None,
        typer.Option(help="Fetch inat12k from a mirror, not from W&B's public bucket.", show_default=False),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Check the archive against this hash (64 hex digits).", show_default=False)
    ] = None,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Do not remove the archive afterwards.")] = False,
    json: options.Json = False,
) -> None:
    """Fetch a data set. An interrupted download goes on where it stopped; a complete data set is left as it is.

    [dim]inat-ft fetch inat12k --to data/[/dim]
    """
    from inat_ft.download import datasets
    from inat_ft.errors import UsageError

    if name == "digits":
        if url or sha256 or keep_archive:
            raise UsageError(
                "the digits are embedded: there is no archive to fetch", "leave out --url, --sha256, --keep-archive"
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
