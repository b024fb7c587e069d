"""Weights & Biases, online or offline. Whatever happens to it, the training goes on and the run keeps its record."""

from __future__ import annotations

import json
import netrc
import os
import re
import shlex
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inat_ft.config import RunConfig, TrackConfig
from inat_ft.errors import InatFtError, UsageError
from inat_ft.evaluation.figures import BLUE, ORANGE, new_figure, plotting, save
from inat_ft.records import Epoch, RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIMEOUT_S = 3.0
_SETTINGS = {"init_timeout": 30.0, "finish_timeout": 60.0}
"""Seconds; wandb by itself waits for 90, and for ever. `WANDB_INIT_TIMEOUT` and `WANDB_FINISH_TIMEOUT` say otherwise."""


class WandbTracker:
    """One run at W&B, under the names that the seed of this project used: epoch, train_loss ... val_accuracy."""

    def __init__(self, config: TrackConfig) -> None:
        self.config = config
        self.run: Any = None
        self.directory = Path()
        self.history: list[Epoch] = []

    def start(self, config: RunConfig, name: str, directory: Path) -> None:
        """Open the run, or take the one that a sweep's agent has opened. Raises InatFtError when it cannot."""
        import wandb

        self.directory = directory
        resolved = config.model_dump(mode="json", exclude={"name", "track"})
        try:
            with redirect_stdout(sys.stderr):
                self.run = wandb.run or wandb.init(
                    project=self.config.project,
                    entity=self.config.entity,
                    name=name,
                    dir=directory,
                    mode="online" if self.config.wandb == "online" else "offline",
                    settings=wandb.Settings(**patience()),
                )
                self.run.config.update(resolved, allow_val_change=True)
        except wandb.Error as error:
            raise InatFtError(f"W&B: {error}", "log offline and send it later: --wandb offline") from error

    def log(self, epoch: Epoch) -> None:
        """Send the epoch's figures."""
        self.history.append(epoch)
        self._safely(lambda: self.run.log(epoch.model_dump(exclude_none=True)))

    def finish(self, record: RunRecord | None) -> str:
        """Send summary and figures, and close. Waits a minute at most; what is not sent by then can be sent later."""
        if record is not None:
            self._safely(lambda: self._summarise(record))
        with redirect_stdout(sys.stderr):
            self._safely(lambda: self.run.finish(exit_code=0 if record else 1))
        return (
            f"W&B's record is in {self._kept}; send it: {self._sync_command}" if self.config.wandb == "offline" else ""
        )

    @property
    def _kept(self) -> Path:
        return Path(self.run.dir).parent

    @property
    def _sync_command(self) -> str:
        """The command that sends what the server lacks; by itself, `wandb sync` skips runs that began online."""
        option = "" if self.config.wandb == "offline" else "--include-online "
        return f"wandb sync {option}{shlex.quote(str(self._kept))}"

    def _summarise(self, record: RunRecord) -> None:
        import wandb

        best = record.history[(record.best_epoch or 1) - 1].model_dump(exclude_none=True)  # whose weights are kept
        self.run.summary.update({**best, "best_epoch": best.pop("epoch")})
        self.run.summary.update({f"{part}_s": seconds for part, seconds in record.seconds.items()})
        file = save(curves(record.history), self.directory / "figures" / "curves")[0]
        self.run.summary["curves"] = wandb.Image(str(file))

    def _safely(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            if type(error) is Exception:  # so the agent of a sweep ends a trial: W&B throws it into this thread
                raise
            print(f"warning: W&B did not take it ({error}); send it later: {self._sync_command}", file=sys.stderr)


def patience() -> dict[str, Any]:
    """Settings that keep wandb from waiting for ever for a server that was lost."""
    return {"silent": True} | {k: v for k, v in _SETTINGS.items() if f"WANDB_{k.upper()}" not in os.environ}


def curves(history: list[Epoch]) -> Figure:
    """Loss and accuracy over the epochs."""
    with plotting():
        figure, pair = new_figure(7.2, 3.0, ncols=2)
        for axes, what in zip(pair, ("loss", "accuracy"), strict=True):
            for subset, colour in (("train", ORANGE), ("val", BLUE)):
                values = [getattr(epoch, f"{subset}_{what}") for epoch in history]
                axes.plot([epoch.epoch for epoch in history], values, "o-", color=colour, label=subset, markersize=3)
            axes.set(xlabel="epoch", title=what)
            axes.legend(frameon=False)
    return figure  # type: ignore[no-any-return]


def require_server() -> None:
    """Ask W&B who we are. Raises UsageError or InatFtError, within 5 s, when it cannot be reached or refuses the key."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "disabled", "dryrun"):
        raise UsageError(
            f"WANDB_MODE={mode}, and this needs W&B's server", "unset WANDB_MODE, or stay without a server"
        )
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    if not re.match(r"https?://[^/]", base):
        raise UsageError(
            f"WANDB_BASE_URL={base} is no web address", "such as https://wandb.example.org; unset it for W&B's own"
        )
    key = _key(base)
    if not key:
        raise UsageError(
            f"there is no W&B key for {base}", "run `wandb login`, set WANDB_API_KEY, or stay without a server"
        )
    query = {"operationName": "Viewer", "query": "query Viewer { viewer { id username entity } }", "variables": {}}
    login = b64encode(f"api:{key}".encode()).decode()
    request = urllib.request.Request(
        f"{base}/graphql",
        json.dumps(query).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {login}", "User-Agent": "inat-ft"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise _wrong_key(base) from None
        raise _unreachable(base, f"it answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise _unreachable(base, str(getattr(error, "reason", error))) from None
    data = found.get("data") if isinstance(found, dict) else None
    if isinstance(data, dict) and "viewer" in data and data["viewer"] is None:
        raise _wrong_key(base)


def _wrong_key(base: str) -> InatFtError:
    return InatFtError(
        f"W&B at {base} does not know this key", "run `wandb login --relogin`, or set WANDB_API_KEY anew"
    )


def _unreachable(base: str, why: str) -> InatFtError:
    return InatFtError(
        f"W&B at {base} cannot be reached: {why}",
        "is the network up, and WANDB_BASE_URL right?\n"
        "without a server: inat-ft train --wandb offline, inat-ft sweep create --backend local",
    )


def _key(base: str) -> str | None:
    """The key from the environment, or from where `wandb login` puts it."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    host = base.rsplit("://", maxsplit=1)[-1].split("/", maxsplit=1)[0].split(":", maxsplit=1)[0]
    try:
        found = netrc.netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None
