"""A comparison as one HTML file: the conclusion first, then the evidence, then how to reproduce it."""

from __future__ import annotations

import base64
import os
import shlex
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from inat_ft_conformal.selective import ACCURACIES, risk_coverage
from inat_ft_figures.figures import BLUE, GREEN, GREY, ORANGE, inline, logarithmic, new_figure, plotting, shorten
from inat_ft_figures.grids import load_whole

from inat_ft import __version__
from inat_ft.errors import InatFtError
from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.compare import CANDIDATE_COLUMNS, PAIR_COLUMNS, Comparison, differing_settings
from inat_ft.evaluation.predictions import align
from inat_ft.metrics.base import Metric, Predictions
from inat_ft.records import check_output, write_text

_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "os^DvPX"
_NUM_IMAGES = 12
_WIDTH = 4.8
"""Width of a chart in inches: its text is readable in a column and on a phone."""
_MAX_BARS = 30
"""Classes in the chart of recall by class."""
_MAX_CLASSES = 200
"""Classes in the table of recall by class."""


def write_report(comparison: Comparison, file: Path) -> None:
    """Write the report as one HTML page, which works offline and has no scripts, atomically."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    check_output(file)
    environment = Environment(loader=PackageLoader("inat_ft_report"), autoescape=True, undefined=StrictUndefined)
    best_two = _best_two(comparison)
    classes = _recall_by_class(*best_two) if best_two else None
    with plotting():
        charts = {
            name: {"image": inline(figure), "caption": caption}
            for name, (figure, caption) in _charts(comparison, classes).items()
        }
    page = environment.get_template("compare.html").render(
        comparison=comparison,
        label=comparison.scored_by.label,
        charts=charts,
        candidate_columns=[c for c in CANDIDATE_COLUMNS if any(c.cell(each) for each in comparison.candidates)],
        pair_columns=PAIR_COLUMNS,
        settings=differing_settings([candidate.record for candidate in comparison.candidates]),
        discordant=_discordant_images(*best_two) if best_two else [],
        classes=classes,
        max_classes=_MAX_CLASSES,
        reproduce=[(candidate.name, _how_to_reproduce(candidate)) for candidate in comparison.candidates],
        command=_compare_command(comparison),
        shorten=shorten,
        version=__version__,
    )
    write_text(file, page)


def _charts(comparison: Comparison, classes: dict[str, Any] | None) -> dict[str, tuple[Any, str]]:
    """Return every figure that the records allow, by name, with its caption."""
    candidates, metric = comparison.candidates, comparison.scored_by
    curves = [c for c in candidates if len(c.record.history) > 1]
    costs = [c for c in candidates if c.score and c.record.seconds.get("total")]
    tested = [c for c in candidates if c.predictions]
    numbers = {candidate.name: number for number, candidate in enumerate(candidates)}  # the same style in all charts
    found = {"scores": (_scores(candidates, metric.label), f"{metric.label} of each classifier, with its 95% interval")}
    if curves:
        found["curves"] = _curves(curves, numbers), "accuracy on the validation images after each epoch"
    if len(costs) > 1:
        found["cost"] = _cost(costs, metric, numbers), f"{metric.label} against training time, with 95% intervals"
    if selective := [c for c in tested if c.predictions[0].probabilities is not None]:
        found["selective"] = _selective(selective, numbers)
    if classes:
        largest = f", the {_MAX_BARS} largest differences" if len(classes["rows"]) > _MAX_BARS else ""
        found["classes"] = _classes(classes), f"recall by class, {classes['second']} minus {classes['first']}{largest}"
    return found


def _scores(candidates: list[Candidate], label: str) -> Any:
    scored = [(shorten(candidate.name, 24), candidate.score) for candidate in reversed(candidates) if candidate.score]
    figure, axes = new_figure(_WIDTH, 1.3 + 0.4 * len(scored))
    for place, (_, score) in enumerate(scored):
        if score.low is not None and score.high is not None:
            axes.plot([score.low, score.high], [place, place], color=GREY, linewidth=2, solid_capstyle="butt")
        axes.plot(score.value, place, "o", color=BLUE, markersize=7)
        axes.annotate(f"{score.value:.4f}", (score.value, place), (0, 7), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(scored)), [name for name, _ in scored])
    axes.set_ylim(-0.6, len(scored) - 0.3)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.set_xlabel(label[:1].upper() + label[1:])
    return figure


def _curves(candidates: list[Candidate], numbers: dict[str, int]) -> Any:
    figure, axes = new_figure(_WIDTH, 3.3)
    for candidate in candidates:
        epochs = [epoch.epoch for epoch in candidate.record.history]
        values = [np.nan if e.val_accuracy is None else e.val_accuracy for e in candidate.record.history]
        axes.plot(
            epochs, values, marker="o", markersize=3, label=shorten(candidate.name), **_line(numbers[candidate.name])
        )
    axes.set(xlabel="Epoch", ylabel="Validation accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, len(candidates))
    return figure


def _line(number: int) -> dict[str, str]:
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": _DASHES[number % len(_DASHES)]}


def _legend(figure: Any, entries: int) -> None:
    """Put the legend below the axes, where it hides no line."""
    figure.set_figheight(figure.get_figheight() + 0.2 * entries)
    figure.legend(frameon=False, loc="outside lower left")


def _cost(candidates: list[Candidate], metric: Metric, numbers: dict[str, int]) -> Any:
    figure, axes = new_figure(_WIDTH, 3.3)
    for candidate in candidates:
        at, score, number = candidate.record.seconds["total"], candidate.score, numbers[candidate.name]
        if score and score.low is not None and score.high is not None:
            axes.plot([at, at], [score.low, score.high], color=GREY, linewidth=2, solid_capstyle="butt")
        value = score.value if score else np.nan
        style = {"color": _line(number)["color"], "marker": _MARKERS[number % len(_MARKERS)], "linestyle": "none"}
        axes.plot(at, value, label=shorten(candidate.name), **style)
    axes.set(xlabel="Training time in seconds (logarithmic)", ylabel=metric.label[:1].upper() + metric.label[1:])
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    low, high = axes.get_ylim()
    room = 0.03 * (high - low)
    axes.set_ylim(max(low, metric.bounds[0] - room), min(high, metric.bounds[1] + room))
    logarithmic(axes)
    _legend(figure, len(candidates))
    return figure


def _selective(candidates: list[Candidate], numbers: dict[str, int]) -> tuple[Any, str]:
    """Return accuracy against the share of images without review, and what it means at the first accuracy of interest."""
    figure, axes = new_figure(_WIDTH, 3.3)
    curves = {candidate.name: risk_coverage(candidate.predictions[0]) for candidate in candidates}
    for name, curve in curves.items():
        axes.plot(curve.share, curve.accuracy, label=shorten(name), **_line(numbers[name]))
    axes.set(xlabel="Share of images without review", ylabel="Accuracy on these images")
    _legend(figure, len(candidates))
    lowest = min(float(curve.accuracy[-1]) for curve in curves.values())
    wanted = next((each for each in ACCURACIES if each > lowest), ACCURACIES[-1])
    shares = {name: curve.share_for(wanted) for name, curve in curves.items()}
    text = ", ".join(f"{share:.0%} with {name}" for name, share in shares.items())
    return figure, (
        f"accuracy on the images for which each classifier is most confident; at {wanted:.0%} accuracy, this share of the "
        f"images needs no review: {text} (the confidence is chosen on these images)"
    )


def _classes(classes: dict[str, Any]) -> Any:
    shown = sorted((second - first, name) for name, _, first, second in classes["rows"][:_MAX_BARS])
    figure, axes = new_figure(_WIDTH, 1.3 + 0.28 * len(shown))
    axes.barh(range(len(shown)), [value for value, _ in shown], color=[BLUE if v >= 0 else ORANGE for v, _ in shown])
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(shown)), [shorten(name, 24) for _, name in shown])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.set_xlabel("Difference in recall")
    return figure


def _recalls(p: Predictions) -> list[float]:
    """Return the recall of each class, 0 without images."""
    counts, hits = (np.bincount(labels, minlength=len(p.classes)) for labels in (p.true, p.true[p.correct]))
    return (hits / np.maximum(counts, 1)).tolist()  # type: ignore[no-any-return]  # numpy returns Any


def _best_two(comparison: Comparison) -> tuple[Candidate, Candidate, Predictions] | None:
    """Return the reference and the best candidate tested against it, with the latter's predictions in the same order."""
    candidates = {candidate.name: candidate for candidate in comparison.candidates}
    for pair in comparison.pairs:
        if pair.p is not None:
            first, second = candidates[pair.first], candidates[pair.second]
            aligned = align(first.predictions[0], second.predictions[0])
            return None if isinstance(aligned, str) else (first, second, aligned)
    return None


def _recall_by_class(first: Candidate, second: Candidate, aligned: Predictions) -> dict[str, Any]:
    """Return the recall by class, the largest difference first."""
    a = first.predictions[0]
    counts = np.bincount(a.true, minlength=len(a.classes)).tolist()
    rows = list(zip(a.classes, counts, _recalls(a), _recalls(aligned), strict=True))
    rows = [row for row in rows if row[1]]
    rows.sort(key=lambda row: -abs(row[2] - row[3]))
    return {"first": first.name, "second": second.name, "rows": rows}


def _discordant_images(first: Candidate, second: Candidate, aligned: Predictions) -> list[dict[str, Any]]:
    """Return images that only one of the two classifies correctly, as thumbnails, where the files are found."""
    manifest = first.manifest() or second.manifest()
    if manifest is None:
        return []
    a = first.predictions[0]
    paths = dict(zip(manifest.hashes, manifest.paths, strict=True))
    shown: list[dict[str, Any]] = []
    for name, only in ((first.name, a.correct & ~aligned.correct), (second.name, aligned.correct & ~a.correct)):
        for row in only.nonzero()[0][: _NUM_IMAGES // 2].tolist():
            picture = thumbnail(manifest.root / paths.get(a.hashes[row], a.paths[row]))
            if picture:
                predicted = {"first": a.classes[a.predicted[row]], "second": a.classes[aligned.predicted[row]]}
                known = {"thumbnail": picture, "correct": name, "true": a.classes[a.true[row]], "path": a.paths[row]}
                shown.append(known | predicted)
    return shown


def thumbnail(path: Path) -> str | None:
    """Return a whole image as a data URL with at most 160 x 160 pixels, or None if it cannot be read."""
    from PIL import Image

    try:
        pixels = load_whole(path, 160)
    except InatFtError:
        return None
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _how_to_reproduce(candidate: Candidate) -> list[tuple[str, list[Any], bool]]:
    """Return facts: a title, its values, and whether they are code."""
    record, folder = candidate.record, _relative(candidate.files[0].parent)
    versions = ", ".join(f"{key} {value}" for key, value in record.environment.items() if value)
    commands = [f"inat-ft train --config {shlex.quote(f'{folder}/config.yaml')}", f"inat-ft eval {shlex.quote(folder)}"]
    if folds := len(getattr(candidate, "folds", ())):  # a cross-validation
        commands = [f"{commands[0]} --folds {folds}"]
    facts: list[tuple[str, list[Any], bool]] = [
        ("Commands", commands if record.config else [], True),
        ("Seed", [record.seed], False),
        ("Manifest", [record.split and record.split.fingerprint], True),
        ("Test images and labels", [record.test and record.test.fingerprint], True),
        ("Pretrained weights (SHA-256)", [record.weights_sha256], True),
        ("Environment", [versions or "not recorded"], False),
    ]
    return [fact for fact in facts if fact[1] and fact[1][0] not in (None, "")]


def _compare_command(comparison: Comparison) -> str:
    """Return the command that makes this comparison."""
    files = [file for candidate in comparison.candidates for file in candidate.files]
    runs = [_relative(file.parent if file.name == "record.json" else file) for file in files]
    words = ["inat-ft", "compare", *runs, "--metric", comparison.metric]
    words += ["--margin", f"{comparison.margin:g}"] if comparison.margin is not None else []
    words += ["--group"] if len(files) > len(comparison.candidates) else []
    return shlex.join(words)


def _relative(path: Path) -> str:
    """Return a path relative to the working folder if it is inside it."""
    return Path(os.path.relpath(path)).as_posix() if path.resolve().is_relative_to(Path.cwd()) else path.as_posix()
