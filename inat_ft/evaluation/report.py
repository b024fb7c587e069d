"""A comparison as one HTML file: the answer first, then the evidence, last how to repeat it."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft import __version__
from inat_ft.errors import InatFtError
from inat_ft.evaluation.charts import draw_charts
from inat_ft.evaluation.compare import Comparison, Entry, align, manifest_of_entry
from inat_ft.evaluation.figures import plotting
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
        flips=_flips(comparison),
        repeat=[_how_to_repeat(entry) for entry in comparison.entries],
        version=__version__,
    )
    write_text(file, page)


def inline(figure: Figure) -> str:
    """A figure as a data address, SVG."""
    out = BytesIO()
    with plotting():
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _flips(comparison: Comparison) -> list[dict[str, Any]]:
    """Images on which the two best disagree about being right, as small pictures, where the files can be found."""
    with_images = [entry for entry in comparison.entries if entry.predictions]
    if len(with_images) < 2:
        return []
    first, second = with_images[:2]
    _, aligned = align(first, second)
    manifest = manifest_of_entry(first) or manifest_of_entry(second)
    if aligned is None or manifest is None:
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

    from inat_ft.data.images import load_image

    try:
        pixels = load_image(path, 128)
    except InatFtError:
        return None
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _how_to_repeat(entry: Entry) -> dict[str, Any]:
    record = entry.record
    versions = {key: value for key, value in record.environment.items() if value}
    return {
        "name": entry.name,
        "file": entry.files[0].name,
        "command": f"inat-ft train --config {entry.files[0].parent.name}/config.yaml" if record.config else None,
        "manifest": record.split.fingerprint if record.split else None,
        "test": record.test.fingerprint if record.test else None,
        "weights": record.weights_sha256,
        "seed": record.seed,
        "environment": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
