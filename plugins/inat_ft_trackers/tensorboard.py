"""The tracker for TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inat_ft_run_files.figures import write_confusion
from inat_ft_run_files.results import CLASS_COLUMNS, Results, evaluated, flat_config, summary, validation
from pydantic import PrivateAttr

from inat_ft.config import RunConfig
from inat_ft.errors import UsageError
from inat_ft.records import Epoch, RunRecord
from inat_ft.settings import dump_config
from inat_ft.tracking import Tracker

_FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Write event files for TensorBoard into the folder `tensorboard` of the run."""

    _writer: Any = PrivateAttr(None)
    _directory: Path = PrivateAttr(Path())
    _config: RunConfig = PrivateAttr(default_factory=RunConfig)

    def check(self) -> None:
        """Check that the package is installed. Raises UsageError."""
        if find_spec("tensorboard") is None:
            raise UsageError(
                "the tracker tensorboard needs the package tensorboard", "pip install 'inat-ft[tensorboard]'"
            )

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start to write. A resumed training replaces the epochs after the last finished one."""
        folder = directory / _FOLDER
        has_events = any(folder.glob("events.*"))
        self._directory, self._config = directory, config
        self._writer = _open(folder, len(history) + 1 if history and has_events else 0)
        self._writer.add_text("config", f"```yaml\n{dump_config(config)}```")
        for epoch in () if has_events else history:
            self.log(epoch)

    def log(self, epoch: Epoch) -> None:
        for name, value in epoch.model_dump(exclude={"epoch"}, exclude_none=True).items():
            subset, _, quantity = name.partition("_")
            tag = f"{quantity}/{subset}" if quantity else name
            if isinstance(value, int | float):
                self._writer.add_scalar(tag, value, epoch.epoch)
        self._writer.flush()

    def finish(self, record: RunRecord | None) -> str:
        if record is not None:
            step = record.best_epoch or 1
            _add_facts(self._writer, summary(record), step)
            results = validation(record, self._directory)
            if results is not None:
                _add_results(self._writer, results, step)
            self._add_hparams(record)
        self._writer.close()
        return f"TensorBoard: tensorboard --logdir {self._directory.parent}"

    def _add_hparams(self, record: RunRecord) -> None:
        settings = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in _settings(self._config)}
        self._writer.add_hparams(settings, {"hparam/val_accuracy": record.val_accuracy or 0.0}, run_name=".")

    def evaluated(self, record: RunRecord, directory: Path, subset: str) -> None:
        """Add the metrics, the confusion matrix and the metrics of each class."""
        results = evaluated(record, subset)
        if results is not None:
            writer = _open(directory / _FOLDER, None)
            _add_results(writer, results, record.best_epoch or 1)
            writer.close()


def _settings(config: RunConfig) -> Iterable[tuple[str, Any]]:
    return flat_config(config.model_dump(mode="json")).items()


def _open(folder: Path, purge_step: int | None) -> Any:
    """Open another event file. purge_step: TensorBoard ignores earlier events from this step on."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def _add_facts(writer: Any, facts: Mapping[str, Any], step: int) -> None:
    for name, value in facts.items():
        if isinstance(value, int | float):
            writer.add_scalar(name, value, step)
    texts = [(name, value) for name, value in facts.items() if isinstance(value, str)]
    writer.add_text("run", _table(("fact", "value"), texts), step)


def _add_results(writer: Any, results: Results, step: int) -> None:
    for name, value in results.scalars().items():
        writer.add_scalar(name, value, step)
    writer.add_text(f"{results.subset}/per_class", _table(CLASS_COLUMNS, results.class_rows()), step)
    from PIL import Image

    with TemporaryDirectory() as folder, Image.open(write_confusion(results, Path(folder, "confusion.png"))) as image:
        writer.add_image(f"{results.subset}/confusion", np.asarray(image.convert("RGB")), step, dataformats="HWC")


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    shown = [
        [f"{cell:.4f}" if isinstance(cell, float) else str(cell).replace("|", "¦") for cell in line] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)
