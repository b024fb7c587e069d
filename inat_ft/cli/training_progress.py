"""How a training shows itself in a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inat_ft.cli import render

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.records import Epoch
    from inat_ft.training import TrainCallbacks


def callbacks(config: "RunConfig") -> "TrainCallbacks":
    """Progress bars on a terminal, plain lines elsewhere, nothing when quiet."""
    from inat_ft.training import TrainCallbacks

    epochs = _Epochs(config.optim.epochs)
    return TrainCallbacks(log=render.info, progress=render.progress, on_step=epochs.step, on_epoch=epochs.end)


class _Epochs:
    """One bar or line per epoch, with loss, accuracy, images a second and time left."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.bar: Callable[[int, int, str], None] | None = None
        self.shown = ""
        self.close: Callable[[], object] = lambda: None

    def step(self, done: int, total: int, loss: float | None, accuracy: float | None) -> None:
        if render.is_quiet() or not sys.stderr.isatty():
            return
        if self.bar is None:
            opened = _open_bar(f"epoch {self.done + 1}/{self.total}")
            self.bar = opened.__enter__()
            self.close = lambda: bool(opened.__exit__(None, None, None))
        if loss is not None:
            self.shown = f"loss {loss:.4f}  accuracy {accuracy:.4f}"
        self.bar(done, total, self.shown)

    def end(self, epoch: "Epoch") -> None:
        self.close()
        self.bar, self.shown, self.close, self.done = None, "", lambda: None, epoch.epoch
        val_loss = "not finite" if epoch.val_loss is None else f"{epoch.val_loss:.4f}"
        render.info(
            f"epoch {epoch.epoch}/{self.total}  train loss {epoch.train_loss:.4f} accuracy {epoch.train_accuracy:.4f}  "
            f"val loss {val_loss} accuracy {epoch.val_accuracy:.4f}  {epoch.seconds:.1f} s"
        )


@contextmanager
def _open_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=render.console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None, shown="", rate="")

        def update(done: int, total: int, shown: str) -> None:
            rate = f"{done / max(time.monotonic() - start, 1e-6):,.0f} images/s"
            progress.update(task, completed=done, total=total, shown=shown, rate=rate)

        yield update
