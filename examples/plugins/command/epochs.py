"""A command in a package of its own: `inat-ft epochs` lists the runs by the number of trained epochs."""

from pathlib import Path
from typing import Annotated

import typer


def epochs(runs_dir: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs")) -> None:
    """List the runs by the number of trained epochs."""
    from inat_ft.records import read_record

    records = [read_record(file)[0] for file in runs_dir.glob("*/record.json")]
    for record in sorted(records, key=lambda record: len(record.history)):
        print(f"{len(record.history):4d}  {record.name}")
