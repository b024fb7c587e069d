"""Progress of a training in the terminal."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from inat_ft.cli import render

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.records import Epoch
    from inat_ft.training import TrainCallbacks


def callbacks(config: "RunConfig") -> "TrainCallbacks":
    """Return callbacks that show progress bars on a terminal and print lines otherwise."""
    from inat_ft.training import TrainCallbacks

    epochs = _Epochs(config.optim.epochs)
    return TrainCallbacks(log=render.info, progress=render.progress, on_step=epochs.step, on_epoch=epochs.end)


class _Epochs:
    """One progress bar or line per epoch, with loss, accuracy, images per second and remaining time."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.update: Callable[..., None] | None = None
        self.text = ""
        self.bar = ExitStack()

    def step(self, done: int, total: int, loss: float | None, accuracy: float | None) -> None:
        if render.is_quiet() or not sys.stderr.isatty():
            return
        if self.update is None:
            bar = render.open_bar(f"epoch {self.done + 1}/{self.total}", transient=True)
            self.update = self.bar.enter_context(bar)
        if loss is not None:
            self.text = f"loss {loss:.4f}  accuracy {accuracy:.4f}  "
        self.update(done, total, self.text)

    def end(self, epoch: "Epoch") -> None:
        self.bar.close()
        self.update, self.text, self.done = None, "", epoch.epoch
        val_loss = "not finite" if epoch.val_loss is None else f"{epoch.val_loss:.4f}"
        render.info(
            f"epoch {epoch.epoch}/{self.total}  train loss {epoch.train_loss:.4f} accuracy {epoch.train_accuracy:.4f}  "
            f"val loss {val_loss} accuracy {epoch.val_accuracy:.4f}  {epoch.seconds:.1f} s"
        )
