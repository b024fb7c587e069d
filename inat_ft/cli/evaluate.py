"""`inat-ft eval`: evaluate a run on images that it was not trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.evaluation.evaluate import EvaluationResult
    from inat_ft.records import Metric

_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "top3_accuracy": "top-3 accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "log_loss": "log loss (nats)",
    "brier": "Brier score",
    "ece": "calibration error",
    "temperature": "temperature, fitted on validation",
    "log_loss_calibrated": "log loss at that temperature",
    "ece_calibrated": "calibration error at that temperature",
}


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory, or its record.json.")],
    subset: Annotated[Literal["test", "val"], typer.Option(help="Images to evaluate on.")] = "test",
    weights: Annotated[
        Literal["best"], typer.Option(help="Weights of the best epoch, the ones that are kept.")
    ] = "best",
    tta: Annotated[Literal["none", "flip"], typer.Option(help="flip: the mean with the mirrored image.")] = "none",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images in pixels, where it is to differ from the run's; choose it on val.",
            min=16,
            max=1024,
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="fp32 is exact.")] = "fp32",
    root: Annotated[
        Path | None, typer.Option(help="Folder of the images, when they have moved.", show_default=False)
    ] = None,
    cam: Annotated[
        bool, typer.Option("--cam", help="Draw Grad-CAM maps of the predicted class. Needs the extra cam.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Evaluate a run on the test set: metrics with 95 % intervals, figures, and predictions.

    Each evaluation on the test set is counted in a file beside the manifest.

    [dim]inat-ft eval runs/resnet50-head-1[/dim]
    """
    from inat_ft.evaluation.evaluate import evaluate_run
    from inat_ft.evaluation.predict import InferenceConfig

    with render.progress(f"evaluating on {subset}") as progress:
        inference = InferenceConfig(device, precision, tta, image_size)
        found = evaluate_run(run, subset, inference, root=root, cam=cam, progress=progress)
    if json:
        files = [file.as_posix() for file in found.figures]
        render.echo_json({"run": found.record.name, **found.evaluation.model_dump(mode="json"), "figures": files})
    else:
        _show(found)


def _show(found: "EvaluationResult") -> None:
    evaluation = found.evaluation
    rows = [(_NAMES.get(name, name), *_cells(metric)) for name, metric in evaluation.metrics.items()]
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
    classes = found.record.classes
    render.table(
        "confusion matrix: rows are true classes, columns predicted classes",
        ("", *classes),
        _confusion(found),
        right=classes,
    )
    if evaluation.look is not None:
        times = "once" if evaluation.look == 1 else f"{evaluation.look} times"
        render.echo(f"test set evaluated {times}")
    folder = found.directory
    pictures = folder / "figures" / f"*-{evaluation.subset}.png"
    render.echo(f"files: {folder / str(evaluation.predictions)}, {folder / 'record.json'}, {pictures}")


def _cells(metric: "Metric") -> tuple[str, str]:
    between = "" if metric.low is None or metric.high is None else f"{metric.low:.4f} to {metric.high:.4f}"
    return f"{metric.value:.4f}", between


def _confusion(found: "EvaluationResult") -> list[list[object]]:
    return [
        [name, *(f"{count:,}" if count else "." for count in row)]
        for name, row in zip(found.record.classes, found.evaluation.confusion, strict=True)
    ]
