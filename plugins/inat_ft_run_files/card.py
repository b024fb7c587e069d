"""The model card of a run: a README.md in the form of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from inat_ft.records import RunRecord, write_text
from inat_ft.text import escape_unprintable
from inat_ft.yaml_io import dump_yaml
from inat_ft_run_files.results import Results

_SUBSETS = {"val": "validation", "test": "test"}
_TYPES = {"accuracy": "accuracy", "macro_f1": "f1", "balanced_accuracy": "balanced_accuracy"}
"""Metrics in the YAML header, with their types on the Hub."""
SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss (nats)",
    "ece": "calibration error",
}
"""Metrics in the table, with their names."""
_FEW_IMAGES = 30
_MARK = "<!-- Written by inat-ft, sha256 of the text above: {} -->\n"


_TIMM_USAGE = """
In this folder, or with `hf-hub:ORG/NAME` instead of `local-dir:.` after an upload to the Hub:

```python
import timm

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
```

```python
from transformers import pipeline

pipeline("image-classification", model=".")("photo.jpg")
```
"""


_PADDING = """**timm and transformers pad images with the mean color, but this classifier was trained with black bars.**
Pad the images to squares with black before these programs transform them; otherwise predictions differ.
"""


def write_card(record: RunRecord, results: Sequence[Results], file: Path, in_timm: bool = False) -> bool:
    """Write the card and return True; leave a card that was edited, or that another program wrote, as it is.

    in_timm: timm and transformers load the folder.
    """
    if file.exists() and not _is_ours(file.read_text(encoding="utf-8", errors="replace")):
        return False
    header = _header(record, results)
    if in_timm:
        header |= {"library_name": "timm", "tags": [*header["tags"], "timm", "transformers"]}
    text = f"---\n{dump_yaml(header)}---\n\n" + "\n".join(_body(record, results, in_timm))
    write_text(file, text + _MARK.format(_digest(text)))
    return True


def _is_ours(text: str) -> bool:
    body, _, last = text.removesuffix("\n").rpartition("\n")
    return f"{last}\n" == _MARK.format(_digest(f"{body}\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _header(record: RunRecord, results: Sequence[Results]) -> dict[str, Any]:
    backbone = str(record.config.get("model", {}).get("backbone", "unknown"))
    dataset = _dataset(record)
    entries = [
        {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {"name": dataset, "type": _slug(dataset), "split": _SUBSETS[each.subset]},
            "metrics": [
                {"type": kind, "name": name.replace("_", " "), "value": round(each.metrics[name].value, 6)}
                for name, kind in _TYPES.items()
                if name in each.metrics
            ],
        }
        for each in results
    ]
    return {
        "library_name": "inat-ft",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "fine-tuning", "safetensors", backbone],
        "metrics": ["accuracy", "f1"],
        "model-index": [{"name": record.name, "results": entries}],
    }


def _dataset(record: RunRecord) -> str:
    return Path(record.split.manifest).stem if record.split else "unknown"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def _body(record: RunRecord, results: Sequence[Results], in_timm: bool) -> Iterator[str]:
    model, strategy = record.config.get("model", {}), record.config.get("strategy", {})
    yield f"# {_text(record.name)}\n"
    start = "random initial weights" if model.get("weights") == "none" else f"weights {_code(model.get('weights'))}"
    yield (
        f"An image classifier for {len(record.classes):,} classes: the network {_code(model.get('backbone'))} ({start}), "
        f"trained with the strategy {_code(strategy.get('name'))}."
    )
    if record.parameters:
        yield f"It has {record.parameters.total:,} parameters, of which {record.parameters.trained:,} were trained."
    yield from _data(record)
    yield from _results(results)
    yield from _limits(record, results)
    yield from _usage(record, in_timm)


def _data(record: RunRecord) -> Iterator[str]:
    yield "\n## Data\n"
    if record.split:
        yield "| subset | images |\n|---|---:|"
        yield from (
            f"| {_SUBSETS.get(name, 'training')} | {number:,} |" for name, number in record.split.counts.items()
        )
        manifest = PurePosixPath(record.split.manifest).name
        yield f"\nManifest: {_code(manifest)}, fingerprint {_code(record.split.fingerprint)}.\n"
    names = ", ".join(_code(name) for name in record.classes[:20])
    yield f"Classes: {names}{', ...' if len(record.classes) > 20 else ''}."


def _results(results: Sequence[Results]) -> Iterator[str]:
    yield "\n## Results\n"
    yield "| subset | images | metric | value | 95% interval |\n|---|---:|---|---:|---|"
    for each in results:
        for name in (name for name in SHOWN if name in each.metrics):
            metric = each.metrics[name]
            interval = "" if metric.low is None or metric.high is None else f"{metric.low:.4f} to {metric.high:.4f}"
            place = f"| {_SUBSETS[each.subset]} | {each.num_images:,} |"
            yield f"{place} {SHOWN[name]} | {metric.value:.4f} | {interval} |"
    yield "\nSee `curves.png` for loss and accuracy by epoch, and `confusion-*.png` for the confusion matrices."


def _limits(record: RunRecord, results: Sequence[Results]) -> Iterator[str]:
    yield "\n## Limits\n"
    yield (
        "- The validation images chose the epoch and often the settings, so validation results are optimistically biased."
    )
    if record.test is None:
        yield "- The classifier has not been evaluated on a test set."
    yield "- It assigns every image to one of its classes, also an image that shows none of them."
    yield "- The results hold for images like those of the data set: other cameras, places or seasons can lower them."
    for each in results[-1:]:
        rows = [row for row in each.class_rows() if row[1]]
        worst = ", ".join(f"{_code(row[0])} ({row[3]:.2f})" for row in sorted(rows, key=lambda row: row[3])[:3])
        yield f"- Classes with the lowest recall on the {_SUBSETS[each.subset]} images: {worst}."
        if few := sum(row[1] < _FEW_IMAGES for row in rows):
            yield f"- {few:,} of {len(rows):,} classes have fewer than {_FEW_IMAGES} {_SUBSETS[each.subset]} images."


def _usage(record: RunRecord, in_timm: bool) -> Iterator[str]:
    yield "\n## Use it\n"
    if in_timm:
        yield _TIMM_USAGE.lstrip()
        if _pads_otherwise(record.preprocess):
            yield _PADDING
    yield '```python\nimport inat_ft\n\nmodel, transform = inat_ft.load("path/to/this/folder")\n```'
    yield "\n## Repeat the run\n"
    yield "```\ninat-ft train --config path/to/this/folder/config.yaml\n```\n"
    place = ", ".join(f"{key} {value}" for key, value in record.environment.items() if isinstance(value, str | int))
    seconds = record.seconds.get("total")
    split = record.config.get("data", {}).get("split")
    where = f" Run the command in the folder from which the path {_code(split)} leads to the manifest." if split else ""
    yield f"The seed is {record.seed}. The manifest above and its images are needed.{where}"
    if seconds is not None:
        yield f"The training took {seconds:,.1f} s on {record.compute.get('device', 'an unknown device')}."
    if record.weights_sha256:
        yield f"SHA-256 of the pretrained weights: {_code(record.weights_sha256)}."
    yield f"Environment: {_text(place)}.\n"


def _pads_otherwise(preprocess: Mapping[str, Any]) -> bool:
    """Return whether timm's transform of the folder pads with another color than inat-ft: with the mean."""
    mean = [round(255 * value) for value in preprocess.get("mean", ())]
    return preprocess.get("resize") == "pad" and list(preprocess.get("fill", ())) != mean


def _code(value: Any) -> str:
    text = escape_unprintable(str(value)).replace("`", "'").replace("|", "¦")
    return f"`{text}`"


def _text(value: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", escape_unprintable(value))
