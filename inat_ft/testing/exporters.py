"""The conformance check of an exporter plugin."""

from __future__ import annotations

from pathlib import Path

import torch

from inat_ft.engine.device import Compute
from inat_ft.evaluation.predict import LoadedModel
from inat_ft.exporters import Exporter, export_model
from inat_ft.models.base import Preprocess
from inat_ft.testing.strategies import CLASSES, SIZE, tiny_net


def check_exporter(exporter: Exporter, directory: Path) -> None:
    """Check that an exporter writes a small network that it reads back with the same probabilities.

    directory: where to write the file. Raises what the exporter raises, InatFtError when the probabilities differ, and
    AssertionError when the suffix is not one.
    """
    suffix = exporter.suffix
    assert suffix.startswith(".") and len(suffix) > 1, f"the suffix must be such as '.onnx', not {suffix!r}"
    classes = tuple(f"class{label}" for label in range(CLASSES))
    compute = Compute(torch.device("cpu"), "fp32", forced=True)
    trained = LoadedModel(tiny_net().eval(), classes, Preprocess(image_size=SIZE), compute)
    file = directory / f"model{suffix}"
    export_model(exporter, trained, file)
    assert file.stat().st_size > 0, f"export() wrote nothing to {file.name}"
