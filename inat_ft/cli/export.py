"""`inat-ft export`: a trained network for programs without torch."""

from pathlib import Path
from typing import Annotated

import typer

from inat_ft.cli import options, render


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="RUN/model.onnx")] = None,
    json: options.Json = False,
) -> None:
    """Write a trained network as ONNX, normalisation and classes included, and check it against torch.

    The weights themselves are in RUN/model.safetensors and load into torchvision's own model.

    [dim]inat-ft export runs/resnet50-head-1 --out model.onnx[/dim]
    """
    from inat_ft.evaluation.export import export_onnx

    file = out or run / "model.onnx"
    error = export_onnx(run, file)
    if json:
        render.as_json({"file": file.as_posix(), "largest_difference": error})
    else:
        render.result(f"{file}: as onnxruntime runs it, probabilities differ from torch's by {error:.1e} at most")
