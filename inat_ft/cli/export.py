"""`inat-ft export`: write a trained network for programs without PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from inat_ft.cli import options, render


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="RUN/model.onnx")] = None,
    json: options.Json = False,
) -> None:
    """Export a trained network as ONNX, with normalization and class names, and check it against PyTorch.

    The weights are also in RUN/model.safetensors, which loads into the original torchvision model.

    [dim]inat-ft export runs/resnet50-head-1 --out model.onnx[/dim]
    """
    from inat_ft.exporters.onnx import export_onnx

    file = out or run / "model.onnx"
    error = export_onnx(run, file)
    if json:
        render.echo_json({"file": file.as_posix(), "largest_difference": error})
    else:
        render.echo(f"{file}: with onnxruntime, probabilities differ from PyTorch by at most {error:.1e}")
