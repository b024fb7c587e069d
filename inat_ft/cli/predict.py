"""`inat-ft predict`: classify images with a trained network."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from inat_ft.cli import options, render

_SHOWN = 30


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run, its record.json, or a model.safetensors.")],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of images.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV file for the predictions, with columns path, predicted and p_<class>.", show_default=False
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of classes to show for each image.", min=1)] = 3,
    tta: Annotated[
        Literal["none", "flip"], typer.Option(help="Test-time augmentation; flip averages with the mirrored image.")
    ] = "none",
    image_size: Annotated[
        int | None,
        typer.Option(help="Image size in pixels, if other than in training.", min=16, max=1024, show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:N, or mps.")] = "auto",
    precision: Annotated[
        Literal["fp32", "bf16", "auto"], typer.Option(help="Numeric precision; fp32 is exact on a CPU.")
    ] = "fp32",
    json: options.Json = False,
) -> None:
    """Classify images with a trained network, with the same preprocessing as in training.

    Unreadable images are skipped with a warning. If no image can be read, the exit code is 1.

    [dim]inat-ft predict runs/resnet50-head-1 photos/ --out predictions.csv[/dim]
    """
    from inat_ft.api.evaluate import predict as predict_images

    with render.progress("predicting") as progress:
        found = predict_images(
            run, images, tta=tta, image_size=image_size, device=device, precision=precision, progress=progress
        )
    for problem in found.skipped:
        render.warn(f"{problem.message}; skipped")
    if out is not None:
        found.to_csv(out)
    if json:
        render.echo_json(found.to_dicts(top))
        return
    rows = [(each.path.as_posix(), *(f"{name} {share:.1%}" for name, share in each.top(top))) for each in found]
    columns = ("image", "predicted", *(f"choice {number}" for number in range(2, len(rows[0]))))
    render.table("", columns, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        render.echo(f"and {len(rows) - _SHOWN:,} more{'' if out else ': --out predictions.csv or --json has them all'}")
    if out is not None:
        render.echo(f"predictions: {out}")
