"""`inat-ft fetch`: bring a data set here."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from inat_ft.cli import options, render

_INAT12K = "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"


def fetch(
    name: Annotated[
        Literal["inat12k", "digits"], typer.Argument(help="inat12k (3.8 GB download) or digits (embedded).")
    ],
    to: Annotated[Path, typer.Option(help="Folder to put it in.")] = Path("data"),
    url: Annotated[str, typer.Option(help="Where to fetch inat12k from, such as a mirror.")] = _INAT12K,
    sha256: Annotated[str | None, typer.Option(help="Check the archive against this hash.", show_default=False)] = None,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Do not remove the archive afterwards.")] = False,
    json: options.Json = False,
) -> None:
    """Fetch a data set. An interrupted download goes on where it stopped; a complete data set is left as it is.

    [dim]inat-ft fetch inat12k --to data/[/dim]
    """
    folder, done = _digits(to) if name == "digits" else _inat12k(to, url, sha256, keep_archive)
    images = sum(1 for file in folder.glob("*/*/*") if file.is_file())
    if json:
        render.as_json({"folder": folder.as_posix(), "images": images, "fetched": done})
        return
    render.result(f"{folder}: {images:,} images{'' if done else ', already complete'}")
    render.remark(f"next: inat-ft split {folder}")


def _digits(to: Path) -> tuple[Path, bool]:
    from inat_ft.data.digits import is_complete, write_digits

    folder = to / "digits"
    complete = is_complete(folder)
    return write_digits(folder), not complete


def _inat12k(to: Path, url: str, sha256: str | None, keep_archive: bool) -> tuple[Path, bool]:
    from inat_ft.data.archive import unpack
    from inat_ft.data.download import download

    folder, archive = to / "inaturalist_12K", to / "nature_12K.zip"
    if folder.exists():
        _require_inat12k(folder)
        return folder, False
    with render.progress("fetching", "bytes") as tick:
        download(url, archive, sha256=sha256, tick=tick)
    with render.progress("unpacking", "files") as tick:
        unpack(archive, folder, "inaturalist_12K", tick)
    _require_inat12k(folder)
    if not keep_archive:
        archive.unlink()
    return folder, True


def _require_inat12k(folder: Path) -> None:
    from inat_ft.errors import DataError

    for subset in ("train", "val"):
        classes = [each for each in (folder / subset).glob("*") if each.is_dir()] if (folder / subset).is_dir() else []
        if not classes:
            raise DataError(
                f"{folder} is no complete iNaturalist-12K: {subset}/ has no class folders",
                f"remove {folder} and fetch again",
            )
