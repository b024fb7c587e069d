"""`inat-ft export`: write a trained network for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from inat_ft.cli import options, render


def export(
    run: Annotated[Path, typer.Argument(help="A run directory, or its record.json.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="RUN/model with the format's suffix")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="onnx, torch-export, or the name of a plugin.", show_default="the suffix of --out decides, else onnx"
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Export a trained network, with normalization and class names, and compare its output with PyTorch.

    The weights are also in RUN/model.safetensors, which loads into the original torchvision model.

    [dim]inat-ft export runs/resnet50-head-1 --out model.onnx[/dim]
    [dim]inat-ft export runs/resnet50-head-1 --format torch-export[/dim]
    """
    from inat_ft.api.model import export as export_run

    done = export_run(run, out, format=format)
    if json:
        render.echo_json({"file": done.file.as_posix(), "largest_difference": done.largest_difference})
    else:
        render.echo(
            f"{done.file}: format {done.format}; probabilities differ from PyTorch's by at most "
            f"{done.largest_difference:.1e}"
        )
