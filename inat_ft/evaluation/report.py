"""A comparison as one HTML file: the answer first, then the evidence, last how to repeat it."""

from __future__ import annotations

import base64
import os
import shlex
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft import __version__
from inat_ft.errors import InatFtError
from inat_ft.evaluation.candidates import Candidate, manifest_of_candidate
from inat_ft.evaluation.charts import draw_charts
from inat_ft.evaluation.compare import Comparison
from inat_ft.evaluation.configurations import differing_settings
from inat_ft.evaluation.figures import plotting, use_fonts_for_all_text
from inat_ft.evaluation.predictions import Predictions, align
from inat_ft.records import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLIPS = 12


def write_report(comparison: Comparison, file: Path) -> None:
    """Write the report, atomically. It needs no network and runs no script."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("inat_ft.evaluation"), autoescape=True, undefined=StrictUndefined)
    charts = [
        {"name": name, "image": inline(figure), "says": says}
        for name, (figure, says) in draw_charts(comparison).items()
    ]
    page = environment.get_template("compare.html").render(
        comparison=comparison,
        metric=comparison.metric.replace("_", " "),
        charts=charts,
        settings=differing_settings([candidate.record for candidate in comparison.candidates]),
        flips=_flips(comparison),
        classes=_classes(comparison),
        repeat=[_how_to_repeat(candidate) for candidate in comparison.candidates],
        again=_recompute(comparison),
        version=__version__,
    )
    write_text(file, page)


def inline(figure: Figure) -> str:
    """A figure as a data address, SVG."""
    out = BytesIO()
    use_fonts_for_all_text(figure)
    with plotting():
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _best_two(comparison: Comparison) -> tuple[Candidate, Candidate, Predictions] | None:
    """The reference and the best other one on the same images, with the latter's predictions in the former's order."""
    candidates = {candidate.name: candidate for candidate in comparison.candidates}
    for pair in comparison.pairs:
        if pair.p is not None:
            first, second = candidates[pair.first], candidates[pair.second]
            aligned = align(first.predictions[0], second.predictions[0])
            return None if isinstance(aligned, str) else (first, second, aligned)
    return None


def _classes(comparison: Comparison) -> dict[str, Any] | None:
    """Recall by class of the two best, the largest difference first."""
    found = _best_two(comparison)
    if found is None:
        return None
    first, second, aligned = found
    a = first.predictions[0]
    rows = []
    for label, name in enumerate(a.classes):
        of_class = a.true == label
        if of_class.any():
            recalls = [float(p.correct[of_class].mean()) for p in (a, aligned)]
            rows.append({"name": name, "images": int(of_class.sum()), "first": recalls[0], "second": recalls[1]})
    rows.sort(key=lambda row: -abs(row["first"] - row["second"]))  # type: ignore[operator]
    return {"first": first.name, "second": second.name, "rows": rows}


def _flips(comparison: Comparison) -> list[dict[str, Any]]:
    """Images on which one of the two best is right and the other wrong, small, where the files can be found."""
    found = _best_two(comparison)
    if found is None:
        return []
    first, second, aligned = found
    manifest = manifest_of_candidate(first) or manifest_of_candidate(second)
    if manifest is None:
        return []
    a = first.predictions[0]
    places = dict(zip(manifest.hashes, manifest.paths, strict=True))
    shown: list[dict[str, Any]] = []
    for who, only in ((first.name, a.correct & ~aligned.correct), (second.name, aligned.correct & ~a.correct)):
        for number in only.nonzero()[0][: _FLIPS // 2].tolist():
            picture = _thumbnail(manifest.root / places.get(a.hashes[number], a.paths[number]))
            if picture:
                shown.append(
                    {
                        "picture": picture,
                        "right": who,
                        "true": a.classes[a.true[number]],
                        "first": a.classes[a.predicted[number]],
                        "second": a.classes[aligned.predicted[number]],
                        "path": a.paths[number],
                    }
                )
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


def _how_to_repeat(candidate: Candidate) -> dict[str, Any]:
    record, folder = candidate.record, _from_here(candidate.files[0].parent)
    versions = {key: value for key, value in record.environment.items() if value}
    commands = [f"inat-ft train --config {shlex.quote(f'{folder}/config.yaml')}", f"inat-ft eval {shlex.quote(folder)}"]
    return {
        "name": candidate.name,
        "commands": commands if record.config else [],
        "manifest": record.split.fingerprint if record.split else None,
        "test": record.test.fingerprint if record.test else None,
        "weights": record.weights_sha256,
        "seed": record.seed,
        "environment": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }


def _recompute(comparison: Comparison) -> str:
    """The command that makes this comparison."""
    files = [
        file.parent if file.name == "record.json" else file
        for candidate in comparison.candidates
        for file in candidate.files
    ]
    words = ["inat-ft", "compare", *(_from_here(file) for file in files), "--metric", comparison.metric]
    words += ["--margin", f"{comparison.margin:g}"] if comparison.margin is not None else []
    words += ["--group"] if any(len(candidate.records) > 1 for candidate in comparison.candidates) else []
    return shlex.join(words)


def _from_here(path: Path) -> str:
    """As a command from the working folder names it."""
    return Path(os.path.relpath(path)).as_posix() if path.resolve().is_relative_to(Path.cwd()) else path.as_posix()
