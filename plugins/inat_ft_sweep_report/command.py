"""`inat-ft sweep report`: write the report of a sweep."""

from pathlib import Path
from typing import Annotated

from inat_ft_sweeps.render import Id, Storage, SweepsDir, open_sweep

from inat_ft.cli import options, render


def report(
    id: Id = None,
    out: Annotated[
        Path | None,
        options.output("Folder for the page and its PNGs.", "folder", show_default="report/ in the sweep's folder"),
    ] = None,
    storage: Storage = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Write a self-contained HTML report and PNG figures."""
    from inat_ft_sweep_report.report import write_report

    sweep = open_sweep(id, sweeps_dir, storage)
    for file in write_report(sweep, out or sweep.folder / "report"):
        render.echo(file.as_posix())
