"""`inat-ft train`: fine-tune a classifier."""

import gc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render
from inat_ft.tables import Table

if TYPE_CHECKING:
    from inat_ft.api.train import Run
    from inat_ft.config import RunConfig
    from inat_ft.records import Epoch, RunRecord
    from inat_ft.setup import Directories, TrainCallbacks

_SUGGESTED_EPOCHS = 30


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Run", **settings)


@options.with_config_flags
def train(
    seeds: Annotated[int, _option(min=1, max=1000, help="Number of runs, with consecutive random seeds.")] = 1,
    folds: Annotated[
        int | None, _option(min=2, max=100, help="Cross-validate with this number of folds instead, such as 5.")
    ] = None,
    config: Annotated[
        Path | None, _option("--config", "-c", help="YAML file of settings. Flags take precedence over it.")
    ] = None,
    tracker: Annotated[
        list[str] | None,
        _option("--tracker", "--track", metavar="NAME", help="Log to these trackers, such as wandb,tensorboard."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        _option("--set", "-s", metavar="KEY=VALUE", help="Any key, such as optim.momentum=0.8. Can be repeated."),
    ] = None,
    resume: Annotated[
        Path | None, _option(metavar="RUN", help="Resume an interrupted run, given by its folder or name.")
    ] = None,
    dry_run: Annotated[bool, _option("--dry-run", help="Show settings and trainable layers; do not train.")] = False,
    show_config: Annotated[bool, _option("--show-config", help="List all keys and values; do not train.")] = False,
    find_lr: Annotated[bool, _option("--find-lr", help="Run a learning rate range test instead.")] = False,
    json: options.Json = False,
    runs_dir: options.RunsDir = Path("runs"),
    cache_dir: options.CacheDir = None,
    **flags: Any,
) -> None:
    """Fine-tune a pretrained classifier, or train one from scratch.

    The run's folder gets the weights of the best epoch, a record of the run, and the predictions on the validation images.

    [dim]inat-ft train --mode head --dropout 0.3[/dim]
    [dim]inat-ft train --mode partial --unfreeze-from layer4 --lr 1e-4[/dim]
    [dim]inat-ft train --backbone cnn --image-size 64 --epochs 10[/dim]
    [dim]inat-ft train --mode head --folds 5[/dim]
    """
    from inat_ft.api.train import resolve_config, shadowed_plugins
    from inat_ft.errors import UsageError
    from inat_ft.paths import cache_folder, is_cross_validation
    from inat_ft.registry import FEATURES, get
    from inat_ft.settings import ALIASES, parse_override

    overrides = [(ALIASES[name], value) for name, value in flags.items() if value is not None]
    overrides += [(f"track.{name}", {}) for names in tracker or () for name in names.split(",")]
    overrides += [parse_override(text) for text in set_ or ()]
    if folds and (seeds > 1 or find_lr):
        raise UsageError(f"--folds cannot be used with {'--find-lr' if find_lr else '--seeds'}", "remove one of them")
    resolved, resume = resolve_config(config, overrides, resume, runs_dir)
    if seeds > 1 and resume is not None:
        raise UsageError("--seeds starts new runs, but --resume continues one", "remove --seeds or --resume")
    for plugin in shadowed_plugins(resolved):
        remedy = f"to remove the plugin: pip uninstall {plugin.package}"
        render.warn(f"{plugin} is not used: the name belongs to inat-ft or torchvision; {remedy}")
    from inat_ft.setup import Directories  # imports torch, which invalid settings do not need

    directories = Directories(runs_dir, cache_folder(cache_dir))
    if show_config:
        from inat_ft.settings import describe

        keys = describe(resolved)
        rows = [tuple(key.values()) for key in keys]
        render.emit(json, keys, lambda: render.table(Table(("key", "value", "description"), rows)))
    elif dry_run:
        _dry_run(resolved, json)
    elif find_lr:
        get(FEATURES, "find-lr").load()(resolved, directories, callbacks(resolved), json)
    elif folds or (resume and is_cross_validation(resume)):
        get(FEATURES, "folds-command").load()(resolved, directories, folds, callbacks, resume, json)
    elif seeds > 1:
        _train_seeds(resolved, seeds, directories, json)
    else:
        run = _train(resolved, directories, resume)
        if render.is_main_process():
            _advise(run.record)
            render.emit(json, run.to_dict(), lambda: _show_run(run.record, run.directory))


def callbacks(config: "RunConfig") -> "TrainCallbacks":
    """Return callbacks that show progress bars on a terminal and print lines otherwise."""
    from inat_ft.data.manifest import find_manifest
    from inat_ft.setup import TrainCallbacks

    if not config.data.split and len(list(Path("splits").glob("*.csv"))) > 1:
        render.info(f"split: {find_manifest()}, the newest in splits/; for another one: --split FILE")
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
        if not render.shows_bars():
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
            f"epoch {epoch.epoch}/{self.total}  train loss {epoch.train_loss:.4f} acc {epoch.train_accuracy:.4f}  "
            f"val loss {val_loss} acc {epoch.val_accuracy:.4f}  {epoch.seconds:.1f} s"
        )


def _train(config: "RunConfig", directories: "Directories", resume: Path | None = None) -> "Run":
    from inat_ft.api.train import Run
    from inat_ft.training import train

    try:
        return Run(*train(config, directories, callbacks(config), resume))
    except KeyboardInterrupt as stopped:  # also SIGTERM, which torchrun and schedulers send
        nothing_saved = ["no epoch was completed, so nothing was saved; run the same command again"]
        render.warn("; ".join(["stopped", *getattr(stopped, "__notes__", nothing_saved)]))
        raise


def _show_run(record: "RunRecord", directory: Path) -> None:
    epochs = f"epoch {record.best_epoch} of {len(record.history)}{', stopped early' if record.stopped_early else ''}"
    monitor = record.config["stop"].get("monitor", "val_accuracy")
    value = getattr(record.history[(record.best_epoch or 1) - 1], monitor)
    shown = "" if monitor == "val_accuracy" else f"{monitor} {'not finite' if value is None else f'{value:.4f}'}, "
    accuracy, seconds = record.val_accuracy or 0.0, record.seconds["total"]
    render.echo(f"best: {epochs}, {shown}validation accuracy {accuracy:.4f} in {seconds:.1f} s")
    render.echo(f"run:  {directory}")
    render.info(f"next: inat-ft eval {directory}")


def _advise(record: "RunRecord") -> None:
    """Say on stderr if more training is likely to help."""
    from inat_ft.records import Advice
    from inat_ft.text import pluralize

    reasons = []
    if Advice.FEW_STEPS in record.advice:
        reasons.append(f"only {pluralize(record.optimizer_steps or 0, 'optimizer step')}")
    if Advice.LOSS_STILL_FALLING in record.advice:
        before, last = (epoch.train_loss for epoch in record.history[-2:])
        reasons.append(f"the training loss was still falling ({before:.4f} to {last:.4f} in the last epoch)")
    if reasons:
        epochs = min(10_000, max(_SUGGESTED_EPOCHS, 3 * len(record.history)))
        patience = " --patience 0" if record.config["stop"]["patience"] and record.stopped_early else ""
        render.info(f"{'; '.join(reasons)}: try the same command with --epochs {epochs}{patience}, or with --find-lr")


def _train_seeds(config: "RunConfig", seeds: int, directories: "Directories", json: bool) -> None:
    from statistics import mean, stdev

    from inat_ft.engine.device import release_memory

    runs = []
    for seed in range(config.seed, config.seed + seeds):
        render.info(f"seed {seed}")
        release_memory()
        gc.freeze()  # the next collection skips the objects that are left
        name = f"{config.name}-seed{seed}" if config.name else None
        runs.append(_train(config.model_copy(update={"seed": seed, "name": name}), directories))
    if not render.is_main_process():
        return
    _advise(runs[0].record)
    accuracies = [run.val_accuracy or 0.0 for run in runs]
    average, deviation = mean(accuracies), stdev(accuracies)

    def show() -> None:
        for run in runs:
            render.echo(f"seed {run.record.seed}: validation accuracy {run.val_accuracy:.4f}  {run.directory}")
        render.echo(f"{seeds} seeds: validation accuracy {average:.4f} ± {deviation:.4f}")
        render.info("next: evaluate each run, then compare with runs of other settings: inat-ft compare RUNS --group")

    summary = {"mean": average, "deviation": deviation, "val_accuracy": accuracies}
    render.emit(json, {**summary, "directories": [run.directory.as_posix() for run in runs]}, show)


def _dry_run(config: "RunConfig", json: bool) -> None:
    from itertools import groupby

    from inat_ft.engine.summary import stage_table
    from inat_ft.settings import dump_config
    from inat_ft.setup import prepare

    setup = prepare(config, load_weights=False)
    config = setup.config
    for warning in setup.warnings:
        render.warn(warning)
    stages = stage_table(setup.plan, config.optim.lr)

    def show() -> None:
        render.echo(dump_config(config).rstrip())
        columns = {"stage": "", "parameters": ",", "trainable": ",", "state": "", "learning rate": ">", "BatchNorm": ""}
        for epochs, rows in groupby(stages, lambda stage: stage["epochs"]):
            cells = [list(row.values())[1:] for row in rows]
            title = f"{config.model.backbone}, {config.strategy.name}, epochs {epochs}"
            render.table(Table(columns, cells, title))

    render.emit(json, {"config": config.model_dump(mode="json"), "stages": stages}, show)
