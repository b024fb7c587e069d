"""The built-in tracker for Weights & Biases."""

from __future__ import annotations

import json
import netrc
import os
import re
import shlex
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from inat_ft_run_files.figures import write_confusion, write_curves
from inat_ft_run_files.results import CLASS_COLUMNS, Results, evaluated, summary, validation
from pydantic import PrivateAttr

from inat_ft.config import RunConfig
from inat_ft.errors import InatFtError, UsageError
from inat_ft.records import Epoch, RunRecord, write_text
from inat_ft.tables import Table
from inat_ft.tracking import Tracker

_TIMEOUT_S = 3.0
_ID_FILE = "run-id.txt"
_SETTINGS = {"init_timeout": 30.0, "finish_timeout": 60.0}
"""Seconds. W&B's own defaults are 90 and no limit. `WANDB_INIT_TIMEOUT` and `WANDB_FINISH_TIMEOUT` override them."""
_MODES: dict[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""The values of `WANDB_MODE` and what they mean."""


class WandbTracker(Tracker):
    """Log to Weights & Biases, online or offline."""

    mode: Literal["offline", "online"] = "online"
    """offline writes files that `wandb sync` sends later."""
    project: str | None = None
    """W&B project. Default: W&B's own."""
    entity: str | None = None
    """W&B user or team. Default: W&B's own."""

    _run: Any = PrivateAttr(None)
    _directory: Path = PrivateAttr(Path())
    _stopped: bool = PrivateAttr(False)

    @property
    def effective_mode(self) -> Literal["online", "offline", "disabled"]:
        """The mode under `WANDB_MODE`: online, offline or disabled. The variable does not make an offline run online.

        Raises UsageError when the value of the variable is unknown.
        """
        value = os.environ.get("WANDB_MODE", "").strip().lower()
        if value and value not in _MODES:
            raise UsageError(f"WANDB_MODE={value} is unknown", "set it to online, offline or disabled, or unset it")
        return self.mode if _MODES.get(value, "online") == "online" else _MODES[value]

    def check(self) -> None:
        """Check mode, server and key. Raises UsageError or InatFtError, within 5 s."""
        if self.effective_mode == "online":
            require_server()

    def start(self, config: RunConfig, name: str, directory: Path, history: Sequence[Epoch]) -> None:
        """Start a run, or use the one of a sweep's agent. A resumed training continues its W&B run.

        Online, W&B gets the epochs that it lacks. Offline, all epochs are written again under the same ID, so that sending
        the newest folder is enough.
        """
        mode = self.effective_mode
        if mode == "disabled":
            return
        import wandb

        id_file = directory / "wandb" / _ID_FILE
        known = id_file.read_text(encoding="utf-8").strip() if history and id_file.is_file() else None
        settings = wandb.Settings(**patience(), finish_timeout_raises=True, stop_fn=self._stop)
        try:
            with redirect_stdout(sys.stderr):
                self._run = wandb.run or wandb.init(
                    project=self.project,
                    entity=self.entity,
                    name=name,
                    dir=directory,
                    id=known,
                    resume="allow" if known and mode == "online" else None,
                    mode=mode,
                    settings=settings,
                )
                self._run.config.update(
                    config.model_dump(mode="json", exclude={"name", "track"}), allow_val_change=True
                )
        except wandb.Error as error:
            raise InatFtError(f"W&B did not start: {error}", "next time, log offline: --wandb offline") from error
        self._directory = directory
        write_text(id_file, f"{self._run.id}\n")
        for epoch in history:
            self.log(epoch)

    def log(self, epoch: Epoch) -> None:
        """Log the epoch at the step of its number, unless W&B has that step already."""
        if self._run is not None and epoch.epoch >= self._run.starting_step:
            with self._reported():
                self._run.log(epoch.model_dump(exclude_none=True), step=epoch.epoch, commit=True)

    def finish(self, record: RunRecord | None) -> str:
        """Send summary and figure, and close the run. Wait a minute at most; `wandb sync` sends the rest later."""
        if self._run is None:
            return ""
        with self._reported(), redirect_stdout(sys.stderr):
            try:
                if record is not None:
                    self._summarize(record)
            finally:
                self._run.finish(exit_code=0 if record else 1)
        if self._stopped:
            return "the run was stopped on its W&B page"
        return f"W&B's files are in {self._folder}; send them: {self._sync_command}" if self._is_offline else ""

    @property
    def _is_offline(self) -> bool:
        return self.effective_mode == "offline"

    @property
    def _folder(self) -> Path:
        return Path(self._run.dir).parent

    @property
    def _sync_command(self) -> str:
        """The command that sends what the server lacks; without the option, `wandb sync` skips runs that began online."""
        return f"wandb sync {'' if self._is_offline else '--include-online '}{shlex.quote(str(self._folder))}"

    def _stop(self) -> None:
        """Interrupt the training, as W&B does by itself, and remember that it was W&B."""
        from wandb.sdk.lib.interrupt import interrupt_main

        self._stopped = True
        interrupt_main()

    def _summarize(self, record: RunRecord) -> None:
        import wandb

        best = record.history[(record.best_epoch or 1) - 1].model_dump(exclude_none=True)
        self._run.summary.update({**best, "best_epoch": best.pop("epoch")})
        self._run.summary.update({f"{part}_s": seconds for part, seconds in record.seconds.items()})
        facts = summary(record)
        self._run.summary.update(facts)
        self._run.config.update(
            {key: facts[key] for key in ("manifest_fingerprint", "parameters/trained") if key in facts},
            allow_val_change=True,
        )
        file = write_curves(record.history, self._directory / "figures" / "curves.png")
        self._run.summary["curves"] = wandb.Image(str(file))
        for results in (evaluated(record, "val") or validation(record, self._directory), evaluated(record, "test")):
            if results is not None:
                self._add_results(results)

    def _add_results(self, results: Results) -> None:
        """Add metrics, confusion matrix and the table of the classes to the summary."""
        import wandb

        subset = results.subset
        self._run.summary.update(results.scalars())
        file = write_confusion(results, self._directory / "figures" / f"confusion-matrix-{subset}.png")
        self._run.summary[f"{subset}/confusion"] = wandb.Image(str(file))
        page = Table({**dict.fromkeys(CLASS_COLUMNS, ".4f"), "class": "", "images": ","}, results.class_rows())
        self._run.summary[f"{subset}/per_class"] = wandb.Html(page._repr_html_(), inject=False)

    def evaluated(self, record: RunRecord, directory: Path, subset: str) -> None:
        """Add the results of an evaluation to the run at W&B. Offline, the whole run is written again under its ID."""
        if not record.history or not (directory / "wandb" / _ID_FILE).is_file():
            return
        self.start(RunConfig.model_validate(record.config), record.name, directory, record.history)
        if line := self.finish(record):
            print(line, file=sys.stderr)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if type(error) is Exception:  # W&B's agent raises it in this thread to stop a trial
                raise
            raise InatFtError(f"W&B failed: {error}", f"send it later: {self._sync_command}") from error


def patience() -> dict[str, Any]:
    """Return settings that limit how long wandb waits for a server."""
    return {"silent": True} | {k: v for k, v in _SETTINGS.items() if f"WANDB_{k.upper()}" not in os.environ}


def require_server() -> None:
    """Check that W&B's server answers and knows the key. Raises UsageError or InatFtError within 5 s.

    `wandb.Api` is not used: it asks for a key on a terminal, keeps the credentials for the process, and does not report
    why a server cannot be reached.
    """
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    if not re.match(r"https?://[^/]", base):
        raise UsageError(
            f"WANDB_BASE_URL={base} is not a web address",
            "set it to an address such as https://wandb.example.org, or unset it for W&B's own server",
        )
    key = os.environ.get("WANDB_API_KEY") or _netrc_key(base)
    if not key:
        raise UsageError(f"no W&B key for {base}", "run `wandb login`, set WANDB_API_KEY, or work without the server")
    query = {"operationName": "Viewer", "query": "query Viewer { viewer { id username entity } }", "variables": {}}
    login = b64encode(f"api:{key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}", "User-Agent": "inat-ft"}
    try:
        request = urllib.request.Request(f"{base}/graphql", json.dumps(query).encode(), headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            answer = json.load(response)
    except (OSError, ValueError) as error:
        if getattr(error, "code", None) not in (401, 403):
            raise InatFtError(
                f"W&B at {base} cannot be reached: {getattr(error, 'reason', error)}",
                "check the network and WANDB_BASE_URL\n"
                "without the server: inat-ft train --wandb offline, inat-ft sweep create --backend local",
            ) from None
        answer = {"data": {"viewer": None}}
    data = answer.get("data") if isinstance(answer, dict) else None
    if isinstance(data, dict) and data.get("viewer", "") is None:
        raise InatFtError(
            f"W&B at {base} does not know this key", "run `wandb login --relogin`, or set another WANDB_API_KEY"
        )


def _netrc_key(base: str) -> str | None:
    """Return the key from the netrc file that `wandb login` writes."""
    try:
        file = netrc.netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))
    except (OSError, netrc.NetrcParseError):
        return None
    entry = file.authenticators(urlsplit(base).hostname or "")
    return entry[2] if entry else None
