"""The tracker for Trackio: a database on this machine, a Space of Hugging Face, or a Trackio server."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inat_ft_run_files.figures import write_confusion, write_curves
from inat_ft_run_files.results import Results, evaluated, flat_config, summary, validation
from pydantic import PrivateAttr

from inat_ft.config import RunConfig
from inat_ft.errors import InatFtError, UsageError
from inat_ft.records import Epoch, RunRecord, write_text
from inat_ft.tracking import Tracker

_ID_FILE = ".trackio-run-id"


class Trackio(Tracker):
    """Log to Trackio. Its own variables, such as TRACKIO_DIR and TRACKIO_SPACE_ID, decide where the run is stored."""

    project: str = "inat-ft"
    """Name of the Trackio project."""

    _run: Any = PrivateAttr(None)
    _directory: Path = PrivateAttr(Path())
    _last: int = PrivateAttr(0)

    def check(self) -> None:
        """Check that the package is installed. Raises UsageError."""
        if find_spec("trackio") is None:
            raise UsageError("the tracker trackio needs the package trackio", "pip install 'inat-ft[trackio]'")

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start a run. A resumed training continues its Trackio run, which gets the epochs that it lacks."""
        file = directory / _ID_FILE
        known = file.read_text(encoding="utf-8").strip() if history and file.is_file() else ""
        self._open(flat_config(config.model_dump(mode="json")), name, directory, known)
        write_text(file, f"{self._run.id}\n")
        for epoch in history:
            self.log(epoch)

    def _open(self, settings: Mapping[str, Any], name: str, directory: Path, known: str) -> None:
        """Open a new run, or the one with the ID `known`. Trackio finds it by its name. Raises InatFtError."""
        import trackio

        with redirect_stdout(io.StringIO()):
            run = trackio.init(self.project, name, config=dict(settings), resume="allow" if known else "never")
        self._directory, self._run = directory, run
        logs = trackio.SQLiteStorage.get_logs(self.project, name, run_id=run.id) if known else []
        if logs and run.id != known:
            self._close()
            raise InatFtError(
                f"the newest run '{name}' of the Trackio project {self.project} is another one",
                "choose another name for one of them, or another project: --set track.trackio.project=NAME",
            )
        self._last = max((int(each["epoch"]) for each in logs if "epoch" in each), default=0)

    def log(self, epoch: Epoch) -> None:
        """Log the epoch, unless Trackio has it already."""
        if epoch.epoch > self._last:
            self._run.log(epoch.model_dump(exclude_none=True), step=epoch.epoch)

    def finish(self, record: RunRecord | None) -> str:
        if record is not None:
            import trackio

            step = record.best_epoch or 1
            picture = trackio.Image(str(write_curves(record.history, self._directory / "curves.png")))
            self._run.log({**summary(record), "curves": picture}, step=step)
            results = validation(record, self._directory)
            if results is not None:
                self._log_results(results, step)
        self._close()
        return f'Trackio: trackio show --project "{self.project}"'

    def _close(self) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()

    def _log_results(self, results: Results, step: int) -> None:
        import trackio

        picture = write_confusion(results, self._directory / f"confusion-{results.subset}.png")
        found = {**results.scalars(), f"{results.subset}/confusion": trackio.Image(str(picture))}
        self._run.log(found, step=step)

    def evaluated(self, record: RunRecord, directory: Path, subset: str) -> None:
        """Log the metrics and the confusion matrix to the run's Trackio run."""
        results, file = evaluated(record, subset), directory / _ID_FILE
        if results is None or not file.is_file():
            return
        known = file.read_text(encoding="utf-8").strip()
        self._open(flat_config(record.config), record.name, directory, known)
        self._log_results(results, record.best_epoch or 1)
        self._close()
