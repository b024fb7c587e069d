"""The tracker for MLflow: a local store or a server."""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inat_ft_run_files.figures import write_confusion, write_curves
from inat_ft_run_files.results import CLASS_COLUMNS, Results, evaluated, flat_config, summary, validation
from pydantic import PrivateAttr

from inat_ft.config import RunConfig
from inat_ft.errors import InatFtError, UsageError
from inat_ft.records import Epoch, RunRecord, write_text
from inat_ft.text import csv_cell
from inat_ft.tracking import Tracker

_ID_FILE = ".mlflow-run-id"
_MAX_PARAMS, _MAX_CHARACTERS = 100, 500
"""Parameters of one request, and characters of a value, that every MLflow server accepts."""
_TIMEOUT_S = 3.0
_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own limits let a lost server stop a training for minutes. Variables that are set have precedence."""


class Mlflow(Tracker):
    """Log to MLflow."""

    uri: str | None = None
    """Folder, database or server. Default: MLFLOW_TRACKING_URI, else MLflow's own default."""
    experiment: str | None = None
    """Name of the experiment, created if it is missing. Default: MLFLOW_EXPERIMENT_NAME, else inat-ft."""

    _client: Any = PrivateAttr(None)
    _id: str = PrivateAttr("")
    _directory: Path = PrivateAttr(Path())
    _known: set[int] = PrivateAttr(default_factory=set)

    def check(self) -> None:
        """Check that the package is installed and that the server answers. Raises UsageError or InatFtError."""
        if find_spec("mlflow") is None:
            raise UsageError("the tracker mlflow needs the package mlflow", "pip install 'inat-ft[mlflow]'")
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri.startswith(("http://", "https://")):
            return
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            if getattr(error, "code", 0) not in (401, 403, 404):  # a server that needs a login, or an older one
                raise InatFtError(
                    f"MLflow at {uri} cannot be reached: {getattr(error, 'reason', error)}",
                    "check the network, and track.mlflow.uri or MLFLOW_TRACKING_URI\n"
                    "without the server: --set track.mlflow.uri=sqlite:///mlflow.db",
                ) from None

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start a run. A resumed training continues its MLflow run."""
        self._directory, file = directory, directory / _ID_FILE
        with redirect_stdout(sys.stderr):
            self._client = self._connect()
            if history and file.is_file():
                self._id = file.read_text(encoding="utf-8").strip()
                self._client.update_run(self._id, status="RUNNING")
                self._known = {each.step for each in self._client.get_metric_history(self._id, "epoch")}
            else:
                run = self._client.create_run(
                    self._experiment_id(), run_name=name, tags={"inat_ft.directory": str(directory)}
                )
                self._id = run.info.run_id
                self._log_params(flat_config(config.model_dump(mode="json")))
                write_text(file, f"{self._id}\n")
            for epoch in history:
                self.log(epoch)

    def _connect(self) -> Any:
        for variable, value in _REQUESTS.items():
            os.environ.setdefault(variable, value)
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database is not worth 20 lines
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def _experiment_id(self) -> str:
        name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "inat-ft"
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except Exception:  # another process has created it in the meantime
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _log_params(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_MAX_CHARACTERS]) for key, value in settings.items()]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + _MAX_PARAMS])

    def log(self, epoch: Epoch) -> None:
        """Log the epoch, unless MLflow has it already."""
        if epoch.epoch not in self._known:
            self._log_metrics(epoch.model_dump(exclude_none=True), epoch.epoch)
            self._known.add(epoch.epoch)

    def _log_metrics(self, values: Mapping[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(v), now, step) for key, v in values.items() if isinstance(v, int | float)]
        with redirect_stdout(sys.stderr):
            self._client.log_batch(self._id, metrics=metrics)

    def finish(self, record: RunRecord | None) -> str:
        with redirect_stdout(sys.stderr):
            if record is not None:
                facts = summary(record)
                self._log_metrics(facts, record.best_epoch or 1)
                for name, value in facts.items():
                    if isinstance(value, str):
                        self._client.set_tag(self._id, name, value)
                self._client.log_artifact(self._id, str(write_curves(record.history, self._directory / "curves.png")))
                self._client.log_artifact(self._id, str(self._directory / "config.yaml"))
                results = validation(record, self._directory)
                if results is not None:
                    self._log_results(results, record)
            self._client.set_terminated(self._id, "FINISHED" if record else "FAILED")
        return ""

    def _log_results(self, results: Results, record: RunRecord) -> None:
        self._log_metrics(results.scalars(), record.best_epoch or 1)
        picture = write_confusion(results, self._directory / f"confusion-{results.subset}.png")
        self._client.log_artifact(self._id, str(picture))
        out = io.StringIO()
        rows = [(csv_cell(name), *numbers) for name, *numbers in results.class_rows()]
        csv.writer(out, lineterminator="\n").writerows([CLASS_COLUMNS, *rows])
        self._client.log_text(self._id, out.getvalue(), f"per_class-{results.subset}.csv")

    def evaluated(self, record: RunRecord, directory: Path, subset: str) -> None:
        """Log the results to the run's MLflow run."""
        results, file = evaluated(record, subset), directory / _ID_FILE
        if results is None or not file.is_file():
            return
        with redirect_stdout(sys.stderr):
            self._directory, self._client = directory, self._connect()
            self._id = file.read_text(encoding="utf-8").strip()
            self._log_results(results, record)
