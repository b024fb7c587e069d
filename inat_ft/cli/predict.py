"""`inat-ft predict`: classify images without labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.evaluation.inference import Prediction

_SHOWN = 30


def predict(
    run: Annotated[Path, typer.Argument(help="A run directory, its record.json, or a model.safetensors.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Write a CSV file with the columns path,predicted,p_<class>...", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(help="Classes to show for each image.", min=1)] = 3,
    tta: Annotated[
        Literal["none", "flip"], typer.Option(help="flip: average over the image and its mirror image.")
    ] = "none",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Height and width in pixels. Default: those of the run.", min=16, max=1024, show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="Arithmetic: fp32 is exact.")] = "fp32",
    json: options.Json = False,
) -> None:
    """Classify images with a trained model, with the same preprocessing as in training.

    Images that cannot be read are reported and skipped; the exit code is 1 if none of them can be read.

    [dim]inat-ft predict runs/resnet50-head-1 photos/ --out predictions.csv[/dim]
    """
    from inat_ft.errors import DataError
    from inat_ft.evaluation.inference import predict_images, write_csv
    from inat_ft.evaluation.predict import InferenceConfig

    with render.progress("predicting") as progress:
        answers, problems = predict_images(run, images, InferenceConfig(device, precision, tta, image_size), progress)
    for problem in problems:
        render.warn(f"{problem.message}; skipped")
    if not answers:
        raise DataError("none of the images can be read")
    if out is not None:
        write_csv(answers, out)
    if json:
        render.echo_json([_as_json(answer, top) for answer in answers])
        return
    rows = [(answer.path.as_posix(), *(f"{name} {share:.1%}" for name, share in answer.top(top))) for answer in answers]
    columns = ("image", "predicted", *(f"choice {number}" for number in range(2, len(rows[0]))))
    render.table("", columns, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        render.echo(f"{len(rows) - _SHOWN:,} more{'' if out else ': use --out predictions.csv or --json to see all'}")
    if out is not None:
        render.echo(f"predictions: {out}")


def _as_json(answer: "Prediction", top: int) -> dict[str, Any]:
    best = answer.top(top)
    return {
        "path": answer.path.as_posix(),
        "predicted": best[0][0],
        "probability": best[0][1],
        "top": [{"class": name, "probability": share} for name, share in best],
    }
