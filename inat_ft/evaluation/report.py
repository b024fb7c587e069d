"""A comparison as one HTML file: the conclusion first, then the evidence, then how to reproduce it."""

from __future__ import annotations

import base64
import os
import shlex
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft import __version__
from inat_ft.errors import InatFtError
from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.charts import draw_charts
from inat_ft.evaluation.compare import Comparison
from inat_ft.evaluation.figures import plotting, use_fonts_for_all_text
from inat_ft.evaluation.predictions import align
from inat_ft.evaluation.tables import CANDIDATE_COLUMNS, PAIR_COLUMNS, differing_settings
from inat_ft.metrics.predictions import Predictions
from inat_ft.records import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_IMAGES = 12


def write_report(comparison: Comparison, file: Path) -> None:
    """Write the report, atomically."""
    write_text(file, render_report(comparison))


def render_report(comparison: Comparison) -> str:
    """Return the report as one HTML page, which works offline and has no scripts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("inat_ft.evaluation"), autoescape=True, undefined=StrictUndefined)
    charts = [{"image": inline(figure), "caption": caption} for figure, caption in draw_charts(comparison).values()]
    best_two = _best_two(comparison)
    return environment.get_template("compare.html").render(
        comparison=comparison,
        label=comparison.scored_by.label,
        charts=charts,
        candidate_columns=CANDIDATE_COLUMNS,
        pair_columns=PAIR_COLUMNS,
        settings=differing_settings([candidate.record for candidate in comparison.candidates]),
        discordant=_discordant_images(*best_two) if best_two else [],
        classes=_recall_by_class(*best_two) if best_two else None,
        reproduce=[_how_to_reproduce(candidate) for candidate in comparison.candidates],
        command=_compare_command(comparison),
        version=__version__,
    )


def inline(figure: Figure) -> str:
    """Return a figure as a data URL, SVG."""
    out = BytesIO()
    use_fonts_for_all_text(figure)
    with plotting():
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _best_two(comparison: Comparison) -> tuple[Candidate, Candidate, Predictions] | None:
    """Return the reference and the best candidate tested against it, with the latter's predictions in the same order."""
    candidates = {candidate.name: candidate for candidate in comparison.candidates}
    for pair in comparison.pairs:
        if pair.p is not None:
            first, second = candidates[pair.first], candidates[pair.second]
            aligned = align(first.predictions[0], second.predictions[0])
            return (first, second, aligned) if isinstance(aligned, Predictions) else None
    return None


def _recall_by_class(first: Candidate, second: Candidate, aligned: Predictions) -> dict[str, Any]:
    """Return the recall by class, the largest difference first."""
    a = first.predictions[0]
    rows = []
    for label, name in enumerate(a.classes):
        of_class = a.true == label
        if of_class.any():
            first_recall, second_recall = (float(p.correct[of_class].mean()) for p in (a, aligned))
            rows.append((name, int(of_class.sum()), first_recall, second_recall))
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
            thumbnail = _thumbnail(manifest.root / paths.get(a.hashes[row], a.paths[row]))
            if thumbnail:
                predicted = {"first": a.classes[a.predicted[row]], "second": a.classes[aligned.predicted[row]]}
                known = {"thumbnail": thumbnail, "correct": name, "true": a.classes[a.true[row]], "path": a.paths[row]}
                shown.append(known | predicted)
    return shown


def _thumbnail(path: Path) -> str | None:
    from PIL import Image

    from inat_ft.images.decode import load_image

    try:
        pixels = load_image(path, 128)
    except InatFtError:
        return None
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _how_to_reproduce(candidate: Candidate) -> tuple[str, list[tuple[str, list[Any], bool]]]:
    """Return the candidate's name and its facts: a title, its values, and whether they are code."""
    record, folder = candidate.record, _relative(candidate.files[0].parent)
    versions = ", ".join(f"{key} {value}" for key, value in record.environment.items() if value)
    commands = [f"inat-ft train --config {shlex.quote(f'{folder}/config.yaml')}", f"inat-ft eval {shlex.quote(folder)}"]
    facts: list[tuple[str, list[Any], bool]] = [
        ("Commands", commands if record.config else [], True),
        ("Seed", [record.seed], False),
        ("Manifest", [record.split and record.split.fingerprint], True),
        ("Test images and labels", [record.test and record.test.fingerprint], True),
        ("Pretrained weights (SHA-256)", [record.weights_sha256], True),
        ("Environment", [versions or "not recorded"], False),
    ]
    return candidate.name, [fact for fact in facts if fact[1] and fact[1][0] not in (None, "")]


def _compare_command(comparison: Comparison) -> str:
    """Return the command that makes this comparison."""
    files = [
        file.parent if file.name == "record.json" else file
        for candidate in comparison.candidates
        for file in candidate.files
    ]
    words = ["inat-ft", "compare", *map(_relative, files), "--metric", comparison.metric]
    words += ["--margin", f"{comparison.margin:g}"] if comparison.margin is not None else []
    words += ["--group"] if any(len(candidate.records) > 1 for candidate in comparison.candidates) else []
    return shlex.join(words)


def _relative(path: Path) -> str:
    """Return a path relative to the working folder if it is inside it."""
    return Path(os.path.relpath(path)).as_posix() if path.resolve().is_relative_to(Path.cwd()) else path.as_posix()
