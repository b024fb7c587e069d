"""What `inat-ft train --find-lr` does and shows."""

from inat_ft.cli import render
from inat_ft.config import RunConfig
from inat_ft.setup import Directories, TrainCallbacks
from inat_ft_lr_finder.range_test import draw_lr_range, find_lr


def run(config: RunConfig, directories: Directories, callbacks: TrainCallbacks, json: bool) -> None:
    """Run a range test, draw it, and show the suggested learning rate."""
    found = find_lr(config, directories, callbacks)
    if not render.is_main_process():
        return
    stem = config.name or f"{config.model.backbone.replace(':', '-')}-{config.strategy.name}"
    file = draw_lr_range(found, directories.runs / f"{stem}-lr-range")

    def show() -> None:
        render.echo(f"figure: {file}")
        if found.suggestion is None:
            render.warn("the loss does not fall at any learning rate, so there is no suggestion")
        else:
            render.echo(f"suggested learning rate: {found.suggestion:.1e}, where the loss falls fastest")
            render.info(f"next: run the same command with --lr {found.suggestion:.1e} instead of --find-lr")

    curve = {"lr": found.lrs, "loss": found.losses, "smooth": found.smooth}
    render.emit(json, {"suggestion": found.suggestion, **curve, "picture": file.as_posix()}, show)
