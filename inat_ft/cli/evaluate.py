"""`inat-ft eval`: evaluate a run on images that were not used for training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.api.evaluate import EvaluationResult
    from inat_ft.records import MetricValue

_AFTER_SCALING = {
    "temperature": "temperature, fitted on validation",
    "log_loss_calibrated": "log loss after temperature scaling (nats)",
    "ece_calibrated": "calibration error after temperature scaling",
}


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory, or its record.json.")],
    subset: Annotated[Literal["test", "val"], typer.Option(help="Images to evaluate on.")] = "test",
    weights: Annotated[
        Literal["best"], typer.Option(help="Weights of the best epoch, the only ones that a run keeps.")
    ] = "best",
    tta: Annotated[
        Literal["none", "flip"], typer.Option(help="flip: average over the image and its mirror image.")
    ] = "none",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Image size in pixels. Default: that of the run. To choose a size, use --subset val.",
            min=16,
            max=1024,
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[
        Literal["fp32", "bf16", "auto"], typer.Option(help="Numeric precision; fp32 is exact on a CPU.")
    ] = "fp32",
    root: Annotated[
        Path | None, typer.Option(help="Folder of the images, if they have moved.", show_default=False)
    ] = None,
    cam: Annotated[
        bool, typer.Option("--cam", help="Draw Grad-CAM maps of the predicted class. Requires the extra cam.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Evaluate a run on the test set: metrics with 95 % intervals, figures, and predictions.

    Each evaluation of the test set is recorded in a file beside the manifest.

    [dim]inat-ft eval runs/resnet50-head-1[/dim]
    """
    from inat_ft.api.evaluate import evaluate as evaluate_run

    with render.progress(f"evaluating on {subset}") as progress:
        found = evaluate_run(
            run,
            subset,
            tta=tta,
            image_size=image_size,
            device=device,
            precision=precision,
            root=root,
            cam=cam,
            progress=progress,
        )
    for error in found.errors:
        render.warn(f"{error.message}; skipped")
    if json:
        render.echo_json(found.to_dict())
    else:
        _show(found)


def _show(found: "EvaluationResult") -> None:
    evaluation, classes = found.evaluation, found.record.classes
    rows = [(_label(name), f"{metric.value:.4f}", _interval(metric)) for name, metric in evaluation.metrics.items()]
    title = (
        f"{found.record.name} on {evaluation.num_images:,} {evaluation.subset} images of {evaluation.image_size} pixels"
    )
    render.table(title, ("metric", "value", "95 % interval"), rows, right=("value",))
    per_class = [
        (row.name, f"{row.num_images:,}", *(f"{metric.value:.4f}" for metric in (row.precision, row.recall, row.f1)))
        for row in evaluation.per_class
    ]
    columns = ("class", "images", "precision", "recall", "F1")
    render.table("", columns, per_class, right=columns[1:])
    confusion = [
        [name, *(f"{count:,}" if count else "." for count in row)]
        for name, row in zip(classes, evaluation.confusion, strict=True)
    ]
    title = "confusion matrix: rows are true classes, columns are predicted classes"
    render.table(title, ("", *classes), confusion, right=classes)
    if evaluation.look is not None:
        times = "once" if evaluation.look == 1 else f"{evaluation.look} times"
        render.echo(f"test set evaluated {times}")
    folder = found.directory
    figures = folder / "figures" / f"*-{evaluation.subset}.png"
    render.echo(f"files: {folder / str(evaluation.predictions)}, {folder / 'record.json'}, {figures}")


def _label(name: str) -> str:
    from inat_ft.metrics.base import get_metric

    if name in _AFTER_SCALING:
        return _AFTER_SCALING[name]
    metric = get_metric(name)
    return metric.label if metric.unit in ("", "%") else f"{metric.label} ({metric.unit})"


def _interval(metric: "MetricValue") -> str:
    return "" if metric.low is None or metric.high is None else f"{metric.low:.4f} to {metric.high:.4f}"
