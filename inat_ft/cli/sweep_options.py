"""What the commands of `inat-ft sweep` share: options, the sweep that is meant, and how a trial is trained."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inat_ft.cli import render
from inat_ft.progress import ignore_log

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.settings import Override
    from inat_ft.sweeps.study import Sweep
    from inat_ft.sweeps.worker import Objective

SweepsDir = Annotated[Path, typer.Option("--sweeps-dir", envvar="INAT_FT_SWEEPS_DIR", help="Folder of the sweeps.")]
Id = Annotated[
    str | None,
    typer.Argument(metavar="ID", help="Of the sweep. May be left out where there is only one.", show_default=False),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="INAT_FT_SWEEP_STORAGE",
        help="PostgreSQL for workers on many machines: postgresql://user@host/database.",
        show_default=False,
    ),
]


def where(sweeps_dir: Path) -> str:
    """The option that a next command needs to find the sweep."""
    return "" if sweeps_dir == Path("sweeps") else f" --sweeps-dir {sweeps_dir}"


def open_sweep(id: str | None, sweeps_dir: Path, storage: str | None, adopt: bool = False) -> "Sweep":
    """The sweep that was named, or the only one; adopt: take in a W&B sweep made elsewhere."""
    from inat_ft.errors import UsageError
    from inat_ft.sweeps import folder

    if id is None:
        return folder.open_sweep(folder.only_sweep(sweeps_dir), sweeps_dir, storage)
    name = id.rsplit("/", 1)[-1]
    if "/" in id and not (sweeps_dir / name / "sweep.json").exists():
        if not adopt or id.count("/") != 2:
            raise UsageError(f"no sweep '{id}' in {sweeps_dir}", "a W&B sweep is named ENTITY/PROJECT/ID")
        from inat_ft.sweeps.wandb import adopt_sweep

        return adopt_sweep(id, sweeps_dir)
    return folder.open_sweep(name, sweeps_dir, storage)


def objective(sweep: "Sweep", cache: Path, *extra: "Override") -> "Objective":
    """How a trial is trained; what was chosen for the first one is told. extra: settings for all of them."""
    from inat_ft.sweeps.worker import training
    from inat_ft.training import TrainCallbacks

    first = iter([render.info])

    def callbacks(config: "RunConfig") -> TrainCallbacks:
        gc.freeze()  # the collection before the next trial skips the objects that are left
        return TrainCallbacks(log=next(first, ignore_log), progress=render.progress)

    return training(sweep.spec.metric.name, cache, callbacks, extra)
