"""Export of a trained network to the file formats of other programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from inat_ft import __version__
from inat_ft.errors import InatFtError, PluginError, UsageError
from inat_ft.exporters.base import Exporter
from inat_ft.records import atomic_write
from inat_ft.registry import EXPORTERS, call_plugin, get, plugin_errors, plugins

if TYPE_CHECKING:
    from inat_ft.evaluation.predict import LoadedModel

__all__ = ["Exported", "Exporter", "export_model", "export_run"]

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """An exported network: its file, its format, and how far its probabilities are at most from PyTorch's."""

    file: Path
    format: str
    largest_difference: float


def export_run(run: Path, out: Path | None = None, format: str | None = None) -> Exported:
    """Export the network of a run directory.

    out: the file to write; default: `model` with the suffix of the format, in the run directory. format: the name of an
    exporter; default: the one that writes the suffix of `out`, or else `onnx`. Raises UsageError when packages are missing,
    and InatFtError when the network cannot be exported or the exported one predicts something else.
    """
    from inat_ft.evaluation.predict import InferenceConfig, load_model

    name = format or _format_of(out)
    loaded: type[Exporter] = get(EXPORTERS, name).load()
    with plugin_errors(EXPORTERS, loaded, "__init__()"):
        exporter, suffix = loaded(), loaded.suffix
    missing = [module for module in exporter.requires if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"the format {name} requires packages that are not installed: {', '.join(missing)}",
            f"pip install '{exporter.install or ' '.join(missing)}'",
        )
    trained = load_model(run / "model.safetensors", InferenceConfig(device="cpu"))
    file = out or run / f"model{suffix}"
    return Exported(file, name, export_model(exporter, trained, file))


def export_model(exporter: Exporter, trained: LoadedModel, file: Path) -> float:
    """Export a loaded network and check the file; return the largest difference between its probabilities and PyTorch's.

    Raises InatFtError, and leaves no file, when the difference is larger than 0.001.
    """
    import numpy as np
    import torch

    from inat_ft.exporters.pixels import PixelClassifier

    network, size = PixelClassifier(trained).eval(), trained.preprocess.eval_size
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, size, size, 3), generator=random).to(torch.uint8)
    metadata = {
        "classes": json.dumps(trained.classes),
        "preprocess": trained.preprocess.model_dump_json(),
        "inat_ft": __version__,
    }
    with atomic_write(file) as temporary:
        call_plugin(exporter.export, network, images, metadata, temporary)
        exported = np.asarray(call_plugin(exporter.predict, temporary, images[:2].numpy()))
        with torch.inference_mode():
            expected = network(images[:2]).numpy()
        error = float(np.abs(exported - expected).max()) if exported.shape == expected.shape else float("inf")
        if not error <= _TOLERANCE:
            raise InatFtError(
                f"the exported network does not match PyTorch: probabilities differ by up to {error:.2g}",
                "report it to the author of the exporter; the run itself is not affected",
            )
    return error


def _format_of(file: Path | None) -> str:
    """Return the exporter that writes the suffix of a file, a built-in one if possible; `onnx` if there is none."""
    found = []
    for name in plugins(EXPORTERS) if file else ():
        try:
            plugin = get(EXPORTERS, name)
            if file and plugin.load().suffix == file.suffix:
                found.append((not plugin.is_builtin, name))
        except PluginError:
            continue
    return min(found, default=(True, "onnx"))[1]
