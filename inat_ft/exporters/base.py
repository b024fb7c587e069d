"""The contract of an exporter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


class Exporter(ABC):
    """Writes a trained network in a file format of another program.

    Registered under the entry-point group `inat_ft.exporters` and selected with `inat-ft export --format NAME`, or by the
    suffix of `--out`. What `export` writes is read back with `predict` and compared with PyTorch: if probabilities differ by
    more than 0.001, the command fails and the file is not kept.
    """

    suffix: ClassVar[str]
    """Of the files that it writes, such as `.onnx`."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed."""
    install: ClassVar[str] = ""
    """What `pip install` needs to install them, such as `inat-ft[onnx]`."""

    @abstractmethod
    def export(self, network: nn.Module, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
        """Write the network to the file, whose name may end in another suffix while it is written.

        network: in evaluation mode, on the CPU; from `images`, uint8 `[N, S, S, 3]` RGB, to probabilities, float32 `[N, C]`.
        It normalizes the pixels itself. metadata: `classes` and `preprocess` as JSON, and `inat_ft`, the version.
        """

    @abstractmethod
    def predict(self, file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities `[N, C]` that the exported network predicts for images uint8 `[N, S, S, 3]`."""
