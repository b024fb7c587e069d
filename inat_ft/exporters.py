"""Export of a trained network to the file formats of other programs."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inat_ft import __version__
from inat_ft.data.batches import ImageInput
from inat_ft.errors import InatFtError, PluginError, UsageError
from inat_ft.evaluation.predict import InferenceConfig, LoadedModel, load_model
from inat_ft.locks import lock_run
from inat_ft.records import atomic_write, check_output
from inat_ft.registry import EXPORTERS, FEATURES, call_plugin, get, plugins

_TOLERANCE = 1e-3


class Exporter(ABC):
    """Writes a trained network in a file format of another program.

    Registered under the entry-point group `inat_ft.exporters` and selected with `inat-ft export --format NAME`, or by the
    suffix of `--out`. What `export` writes is read back with `predict` and compared with PyTorch: if probabilities differ by
    more than 0.001, the command fails and the file is not kept.
    """

    suffix: ClassVar[str]
    """Of the files that it writes, such as `.onnx`."""
    writes_folder: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed."""
    install: ClassVar[str] = ""
    """What `pip install` needs to install them, such as `inat-ft[onnx]`."""
    run: Path | None = None
    """Folder of the run that is exported; None in `check_exporter`."""

    def writing(self, file: Path) -> AbstractContextManager[Path]:
        """Return a context manager that yields a temporary path and moves what was written there to `file`."""
        return atomic_write(file)

    @abstractmethod
    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        """Write the network to the file, whose name may end in another suffix while it is written.

        network: in evaluation mode, on the CPU; from `images`, uint8 `[N, S, S, 3]` RGB, to probabilities, float32 `[N, C]`.
        It normalizes the pixels itself. metadata: `classes` and `preprocess` as JSON, and `inat_ft`, the version.
        """

    @abstractmethod
    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities `[N, C]` that the exported network predicts for images uint8 `[N, S, S, 3]`."""


class _PixelClassifier(nn.Module):
    def __init__(self, trained: LoadedModel) -> None:
        super().__init__()
        self.net = trained.net
        self.prepare = ImageInput(trained.preprocess.mean, trained.preprocess.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.prepare(images, torch.empty(0))).softmax(1)  # type: ignore[no-any-return]  # modules return Any


@dataclass(frozen=True)
class ExportResult:
    """An exported network."""

    file: Path
    format: str
    """Name of the exporter."""
    largest_difference: float
    """Largest difference between its probabilities and those of PyTorch, on a few images."""
    checked_on: Literal["images of the split", "random pixels"] = "random pixels"
    """These images; random if those of the run's split cannot be read."""
    url: str | None = None
    """Address of the repository that it was uploaded to."""

    def __fspath__(self) -> str:
        return os.fspath(self.file)


def export_run(run: Path, out: Path | None = None, format: str | None = None) -> ExportResult:
    """Export the network of a run, as described in `inat_ft.export`."""
    name = format or _format_of(out)
    loaded: type[Exporter] = get(EXPORTERS, name).load()
    exporter = call_plugin(loaded)
    exporter.run = run
    if missing := [module for module in exporter.requires if find_spec(module) is None]:
        problem = f"the format {name} requires packages that are not installed: {', '.join(missing)}"
        raise UsageError(problem, f"pip install '{exporter.install or ' '.join(missing)}'")
    stem = "exported" if exporter.suffix == ".safetensors" else "model"  # model.safetensors has the weights of the run
    file = out or run / f"{stem}{exporter.suffix}"
    check_output(file, run.resolve(), "folder" if exporter.writes_folder else "file")
    trained = load_model(run / "model.safetensors", InferenceConfig(device="cpu"))
    with lock_run(run) if file.parent == run else nullcontext():
        images = get(FEATURES, "export-images").load()(run, trained)
        error = export_model(exporter, trained, file, images)
        return ExportResult(file, name, error, "random pixels" if images is None else "images of the split")


def export_model(exporter: Exporter, trained: LoadedModel, file: Path, images: Tensor | None = None) -> float:
    """Export a loaded network and check the file; return the largest difference between its probabilities and PyTorch's.

    images: uint8 `[N, S, S, 3]`, at least two; by default random pixels. Raises InatFtError, and leaves no file, when the
    difference is larger than 0.001.
    """
    network, size = _PixelClassifier(trained).eval(), trained.preprocess.eval_size
    if images is None:
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (3, size, size, 3), generator=random).to(torch.uint8)
    metadata = {
        "classes": json.dumps(trained.classes),
        "preprocess": trained.preprocess.model_dump_json(),
        "inat_ft": __version__,
    }
    with call_plugin(exporter.writing, file) as temporary:
        call_plugin(exporter.export, network, images, metadata, temporary)
        with torch.inference_mode():
            expected = network(images).numpy()
        error = 0.0
        for number in (len(images), 1):  # the batch size is free
            exported = np.asarray(call_plugin(exporter.predict, temporary, images[:number].numpy()))
            same = exported.shape == expected[:number].shape
            error = max(error, float(np.abs(exported - expected[:number]).max()) if same else float("inf"))
        if not error <= _TOLERANCE:
            problem = f"the exported network does not match PyTorch: probabilities differ by up to {error:.2g}"
            raise InatFtError(problem, "report it to the author of the exporter; the run itself is not affected")
    return error


def _format_of(file: Path | None) -> str:
    """Return the exporter that writes the suffix of a file, a built-in one if possible; `onnx` without a suffix."""
    found = []
    for name in plugins(EXPORTERS) if file else ():
        try:
            plugin = get(EXPORTERS, name)
            if file and plugin.load().suffix == file.suffix:
                found.append((not plugin.is_builtin, name))
        except PluginError:
            continue
    if file and file.suffix and not found:
        raise UsageError(f"no format has the suffix of --out {file}", f"add --format: {', '.join(plugins(EXPORTERS))}")
    return min(found, default=(True, "onnx"))[1]
