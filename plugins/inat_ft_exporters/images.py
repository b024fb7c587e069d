"""The images on which an exported network is compared with PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inat_ft.errors import InatFtError
from inat_ft.evaluation.predict import LoadedModel, manifest_of
from inat_ft.images.decode import load_image
from inat_ft.records import read_record

_NUMBER = 4


def read_images(run: Path, trained: LoadedModel) -> Tensor | None:
    """Return images of the test set or the validation set of a run, uint8 `[N, S, S, 3]`, at least two.

    None if the record, the manifest or the images cannot be read, as when the run was copied to another machine.
    """
    try:
        record, file = read_record(run)
        manifest = manifest_of(record, file.parent)
        rows = max(manifest.rows("test"), manifest.rows("val"), key=len)
        chosen = rows[np.linspace(0, len(rows) - 1, min(_NUMBER, len(rows))).astype(int)]
        size, resizing = trained.preprocess.eval_size, trained.preprocess.resizing
        images = [load_image(manifest.root / manifest.paths[row], size, resizing=resizing) for row in chosen]
    except InatFtError:
        return None
    return torch.from_numpy(np.stack(images)) if len(images) > 1 else None
