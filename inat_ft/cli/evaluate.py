"""`inat-ft eval`, `predict` and `export`: what is done with a trained network."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inat_ft.cli import options, render
from inat_ft.errors import UsageError
from inat_ft.registry import FEATURES, get
from inat_ft.tables import Table

if TYPE_CHECKING:
    from inat_ft.api.evaluate import EvaluationResult, PredictionResult
    from inat_ft.evaluation.prediction import Taxon

_SHOWN = 30
_AFTER_SCALING = {
    "temperature": "temperature, fitted on validation",
    "log_loss_calibrated": "log loss after temperature scaling (nats)",
    "ece_calibrated": "calibration error after temperature scaling",
}


def evaluate(
    ctx: typer.Context,
    run: options.RunFolder,
    subset: Annotated[Literal["test", "val"], typer.Option(help="Images to evaluate on.")] = "test",
    weights: Annotated[
        Literal["best"], typer.Option(help="Weights of the best epoch, the only ones that a run keeps.")
    ] = "best",
    tta: options.Tta = "none",
    image_size: options.ImageSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    root: Annotated[Path | None, typer.Option(help="Folder of the images, if they have moved.")] = None,
    taxa: options.Taxa = None,
    rollup: options.Rollup = 0.8,
    cam: Annotated[
        bool, typer.Option("--cam", help="Draw Grad-CAM maps of the predicted class. Requires the extra cam.")
    ] = False,
    coverage: options.Coverage = None,
    by_class: options.ByClass = False,
    json: options.Json = False,
) -> None:
    """Evaluate a run on the test set: metrics with 95% intervals, figures, and predictions.

    Each evaluation of the test set is recorded in a file beside the manifest. To choose an image size, use --subset val.

    [dim]inat-ft eval runs/resnet50-head-1[/dim]
    """
    from inat_ft.api.evaluate import evaluate as evaluate_run

    with render.progress(f"evaluating on {subset}") as progress:
        found = evaluate_run(run, subset, root=root, cam=cam, progress=progress, **_inference(ctx))
    for error in found.errors:
        render.warn(f"{error.message}; skipped")
    render.emit(json, found.to_dict(), lambda: _show(found))


def _show(found: "EvaluationResult") -> None:
    about, classes = found.evaluation, found.record.classes
    rows = [
        (_label(name), each.value, None if None in (each.low, each.high) else f"{each.low:.4f} to {each.high:.4f}")
        for name, each in found.metrics.items()
    ]
    title = f"{found.record.name} on {about.num_images:,} {about.subset} images of {about.image_size} pixels"
    render.table(Table({"metric": "", "value": ".4f", "95% interval": ""}, rows, title))
    for line in get(FEATURES, "group-summary").load()(about.groups) if about.groups else ():
        render.echo(line)
    render.table(found.per_class)
    if about.taxa:
        table, summary = get(FEATURES, "rank-table").load()(about.taxa)
        render.table(table)
        render.echo(summary)
    title = "confusion matrix: rows are true classes, columns are predicted classes"
    confusion = [
        (name, *(f"{count:,}" if count else "." for count in row))
        for name, row in zip(classes, about.confusion, strict=True)
    ]
    render.table(Table({"": "", **dict.fromkeys(classes, ">")}, confusion, title))
    if found.conformal:
        render.table(found.conformal.table)
        render.echo(found.conformal.summary)
    if about.look is not None:
        render.echo(f"test set evaluated {'once' if about.look == 1 else f'{about.look} times'}")
    folder = found.directory
    figures = folder / "figures" / f"*-{about.subset}.png"
    render.echo(f"files: {folder / str(about.predictions)}, {folder / 'record.json'}, {figures}")


def _label(name: str) -> str:
    from inat_ft.metrics.base import get_metric

    if name in _AFTER_SCALING:
        return _AFTER_SCALING[name]
    metric = get_metric(name)
    return metric.label if metric.unit in ("", "%") else f"{metric.label} ({metric.unit})"


def _inference(ctx: typer.Context) -> dict[str, Any]:
    """Return the options of a command that are those of both `evaluate` and `predict`."""
    from inat_ft.evaluation.predict import InferenceConfig

    return {name: ctx.params[name] for name in InferenceConfig.__dataclass_fields__}


def predict(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run, its record.json, or a model.safetensors.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders, or CSVs of boxes (path,x,y,w,h).")],
    out: Annotated[
        Path | None, options.output("CSV file for predictions: path, predicted, confidence, and p_<class>.")
    ] = None,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Another run, whose probabilities are averaged with RUN's. Can be repeated."),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of classes to show for each image.", min=1)] = 3,
    tta: options.Tta = "none",
    image_size: options.ImageSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    taxa: options.Taxa = None,
    rollup: options.Rollup = 0.8,
    coverage: options.Coverage = None,
    by_class: options.ByClass = False,
    json: options.Json = False,
) -> None:
    """Classify images with a trained network, with the same preprocessing as in training.

    Unreadable images are skipped with a warning. If no image can be read, the exit code is 1. --coverage adds a prediction
    set and a decision: accept if the set has one class, else review.

    [dim]inat-ft predict runs/resnet50-head-1 photos/ --out predictions.csv[/dim]
    [dim]inat-ft predict runs/resnet50-head-1 photos/ --taxa taxa.csv --rollup 0.9[/dim]
    [dim]inat-ft predict runs/resnet50-head-1 photos/ --coverage 0.9 --out predictions.csv[/dim]
    """
    from inat_ft.api.evaluate import predict as predict_images
    from inat_ft.records import check_output

    if out is not None:
        check_output(out)
    if out and any(given.is_file() and os.path.realpath(given) == os.path.realpath(out) for given in images):
        raise UsageError(f"--out {out} is one of the inputs", "name another file")
    runs = [run, *(ensemble or ())]
    with render.progress("predicting") as progress:
        found = predict_images(runs, images, progress=progress, **_inference(ctx))
    for problem in found.skipped:
        render.warn(f"{problem.message}; skipped")
    if out is not None:
        found.to_csv(out)
    render.emit(json, found.to_dicts(top), lambda: _show_predictions(found, top, out))


def _show_predictions(found: "PredictionResult", top: int, out: Path | None) -> None:
    rows = [
        (each.path.as_posix(), *(f"{name} {probability:.1%}" for name, probability in each.top(top)))
        for each in found[:_SHOWN]
    ]
    names = ["image", "predicted", *(f"choice {number}" for number in range(2, len(rows[0])))]
    if found[0].taxon:
        names.insert(1, "taxon")
        rows = [(path, _taxon(each.taxon), *top) for each, (path, *top) in zip(found, rows, strict=False)]
    if found[0].set:
        names += ["set", "decision"]
        rows = [(*row, str(each.columns()["set"]), each.decision or "") for each, row in zip(found, rows, strict=False)]
    render.table(Table(names, rows))
    if len(found) > _SHOWN:
        rest = "" if out else ": --out predictions.csv or --json has them all"
        render.echo(f"and {len(found) - _SHOWN:,} more{rest}")
    if found[0].decision:
        accepted = [each.decision for each in found].count("accept")
        render.echo(f"accepted: {accepted:,} of {len(found):,} images; review the others")
    if out is not None:
        render.echo(f"predictions: {out}")


def _taxon(taxon: "Taxon | None") -> str:
    return f"{taxon.name} ({taxon.rank}) {taxon.probability:.1%}" if taxon and taxon.rank else "unsure"


def export(
    run: options.RunFolder,
    out: Annotated[
        Path | None, options.output("File or folder to write.", "", show_default="RUN/model with the format's suffix")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="onnx, torch-export, openvino, safetensors, timm, hub-folder, or the name of a plugin.",
            show_default="the suffix of --out decides, else onnx",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Upload to this Hugging Face repository. A new one is private."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Export a trained network, with normalization and class names, and compare its output with PyTorch.

    The weights are also in RUN/model.safetensors, which loads into the original torchvision model.

    [dim]inat-ft export runs/resnet50-head-1 --out model.onnx[/dim]
    [dim]inat-ft export runs/resnet50-head-1 --push-to-hub my-name/leaf-classifier[/dim]
    """
    from inat_ft.api.network import export as export_run

    done = export_run(run, out, format=format, push_to_hub=push_to_hub)
    difference = f"probabilities differ from PyTorch's by at most {done.largest_difference:.1e} on {done.checked_on}"
    result = {"file": done.file.as_posix()} | {key: getattr(done, key) for key in ("largest_difference", "checked_on")}
    result, uploaded = (result | {"url": done.url}, f"\nuploaded: {done.url}") if done.url else (result, "")
    render.emit(json, result, lambda: render.echo(f"{done.file}: format {done.format}; {difference}{uploaded}"))
