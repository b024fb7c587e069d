"""What the commands of `inat-ft sweep` share: options, opening a sweep, and training a trial."""

import gc
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inat_ft.cli import render
from inat_ft.progress import ignore_log

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.settings import Override
    from inat_ft.sweeps.base import Objective
    from inat_ft.sweeps.study import Sweep

SweepsDir = Annotated[Path, typer.Option("--sweeps-dir", envvar="INAT_FT_SWEEPS_DIR", help="Folder of the sweeps.")]
Id = Annotated[
    str | None,
    typer.Argument(metavar="ID", help="ID of the sweep; optional if there is only one.", show_default=False),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="INAT_FT_SWEEP_STORAGE",
        help="PostgreSQL for workers on several machines: postgresql://user@host/database.",
        show_default=False,
    ),
]


def folder_options(cache_dir: Path | None = None, runs_dir: Path = Path("runs")) -> list[str]:
    """Return the user's --cache-dir and --runs-dir for a printed command, unless the environment sets them."""
    given = {"--cache-dir": cache_dir, "--runs-dir": None if runs_dir == Path("runs") else runs_dir}
    return [
        shlex.join([option, str(path)])
        for option, path in given.items()
        if path and os.environ.get(f"INAT_FT_{option[2:].upper().replace('-', '_')}") != str(path)
    ]


def open_sweep(id: str | None, sweeps_dir: Path, storage: str | None, adopt: bool = False) -> "Sweep":
    """Return the named sweep, or the only one. adopt: accept an existing W&B sweep, `ENTITY/PROJECT/ID`."""
    from inat_ft.errors import UsageError
    from inat_ft.sweeps import folder

    if id is None:
        return folder.open_sweep(folder.only_sweep(sweeps_dir), sweeps_dir, storage)
    name = id.rsplit("/", 1)[-1]
    if "/" in id and not (sweeps_dir / name / "sweep.json").exists():
        if not adopt or id.count("/") != 2:
            raise UsageError(f"no sweep '{id}' in {sweeps_dir}", "the name of a W&B sweep is ENTITY/PROJECT/ID")
        from inat_ft.sweeps.wandb import adopt_sweep

        return adopt_sweep(id, sweeps_dir)
    return folder.open_sweep(name, sweeps_dir, storage)


def objective(sweep: "Sweep", cache: Path, *extra: "Override") -> "Objective":
    """Return the function that trains a trial. extra: settings for all trials. Only the first trial logs its setup."""
    from inat_ft.sweeps.worker import training_objective
    from inat_ft.training import TrainCallbacks

    first = iter([render.info])

    def callbacks(config: "RunConfig") -> TrainCallbacks:
        gc.freeze()  # the collection before the next trial skips the objects that are left
        return TrainCallbacks(log=next(first, ignore_log), progress=render.progress)

    return training_objective(sweep.spec.metric.name, cache, callbacks, extra)
