"""`inat-ft train`: fine-tune a classifier."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render
from inat_ft.cli.flags import with_config_flags

if TYPE_CHECKING:
    from inat_ft.api.run import Run
    from inat_ft.config import RunConfig
    from inat_ft.records import RunRecord
    from inat_ft.training import Directories, Setup

_SUGGESTED_EPOCHS = 30


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Run", **settings)


@with_config_flags
def train(
    seeds: Annotated[int, _option(min=1, max=1000, help="Number of runs, with consecutive random seeds.")] = 1,
    config: Annotated[
        Path | None, _option("--config", "-c", help="YAML file of settings. Flags take precedence over it.")
    ] = None,
    tracker: Annotated[
        list[str] | None, _option(metavar="NAME", help="Log to this tracker, such as wandb. Can be repeated.")
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
    """
    from inat_ft.api.config import resolve_config
    from inat_ft.errors import UsageError
    from inat_ft.settings import ALIASES, parse_override

    overrides = [(ALIASES[name], value) for name, value in flags.items() if value is not None]
    overrides += [(f"track.{name}", {}) for names in tracker or () for name in names.split(",")]
    overrides += [parse_override(text) for text in set_ or ()]
    resolved, resume = resolve_config(config, overrides, resume, runs_dir)
    _warn_about_shadowed_plugins(resolved)
    if show_config:
        _show_config(resolved, json)
    elif dry_run:
        _dry_run(resolved, json)
    elif find_lr:
        _find_lr(resolved, _directories(runs_dir, cache_dir), json)
    elif seeds > 1:
        if resume is not None:
            raise UsageError("--seeds starts new runs, but --resume continues one", "remove --seeds or --resume")
        _train_seeds(resolved, seeds, _directories(runs_dir, cache_dir), json)
    else:
        _train_once(resolved, resume, _directories(runs_dir, cache_dir), json)


def _warn_about_shadowed_plugins(config: "RunConfig") -> None:
    from inat_ft.config import shadowed_plugins

    for plugin in shadowed_plugins(config):
        render.warn(
            f"{plugin} is not used: the name belongs to inat-ft or torchvision; "
            f"to remove the plugin: pip uninstall {plugin.package}"
        )


def _directories(runs_dir: Path, cache_dir: Path | None) -> "Directories":
    from inat_ft.paths import cache_folder
    from inat_ft.training import Directories

    return Directories(runs_dir, cache_folder(cache_dir))


def _train(config: "RunConfig", directories: "Directories", resume: Path | None = None) -> "Run":
    from inat_ft.api.train import train_config
    from inat_ft.cli.training_progress import callbacks

    try:
        return train_config(config, resume, directories, callbacks(config))
    except KeyboardInterrupt as stopped:  # also SIGTERM, which torchrun and schedulers send
        nothing_saved = ["no epoch was completed, so nothing was saved; run the same command again"]
        render.warn("; ".join(["stopped", *getattr(stopped, "__notes__", nothing_saved)]))
        raise


def _train_once(config: "RunConfig", resume: Path | None, directories: "Directories", json: bool) -> None:
    run = _train(config, directories, resume)
    if render.is_main_process():
        _advise(run.record)
        render.emit(json, run.to_dict(), lambda: _show_run(run.record, run.directory))


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

    from inat_ft.training import release_memory

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
    value = {
        "mean": mean(accuracies),
        "deviation": stdev(accuracies),
        "val_accuracy": accuracies,
        "directories": [run.directory.as_posix() for run in runs],
    }

    def show() -> None:
        for run in runs:
            render.echo(f"seed {run.record.seed}: validation accuracy {run.val_accuracy:.4f}  {run.directory}")
        render.echo(f"{seeds} seeds: validation accuracy {value['mean']:.4f} ± {value['deviation']:.4f}")
        render.info(
            "next: inat-ft eval each run, then inat-ft compare --group them with those of another configuration"
        )

    render.emit(json, value, show)


def _find_lr(config: "RunConfig", directories: "Directories", json: bool) -> None:
    from inat_ft.cli.training_progress import callbacks
    from inat_ft.evaluation.lr_figure import draw_lr_range
    from inat_ft.training import find_lr

    found = find_lr(config, directories, callbacks(config))
    if not render.is_main_process():
        return
    stem = config.name or f"{config.model.backbone.replace(':', '-')}-{config.strategy.name}"
    file = draw_lr_range(found.lrs, found.losses, found.smooth, found.suggestion, directories.runs / f"{stem}-lr-range")
    value = {
        "suggestion": found.suggestion,
        "lr": found.lrs,
        "loss": found.losses,
        "smooth": found.smooth,
        "picture": file.as_posix(),
    }

    def show() -> None:
        render.echo(f"figure: {file}")
        if found.suggestion is None:
            render.warn("the loss does not fall at any learning rate, so there is no suggestion")
        else:
            render.echo(f"suggested learning rate: {found.suggestion:.1e}, where the loss falls fastest")
            render.info(f"next: replace --find-lr by --lr {found.suggestion:.1e}")

    render.emit(json, value, show)


def _dry_run(config: "RunConfig", json: bool) -> None:
    from inat_ft.engine.summary import stage_table
    from inat_ft.settings import dump_config
    from inat_ft.training import prepare

    setup = prepare(config, load_weights=False)
    for warning in setup.warnings:
        render.warn(warning)
    rows = stage_table(setup.plan, setup.config.optim.lr)

    def show() -> None:
        render.echo(dump_config(setup.config).rstrip())
        _show_stages(setup, rows)

    render.emit(json, {"config": setup.config.model_dump(mode="json"), "stages": rows}, show)


def _show_stages(setup: "Setup", rows: list[dict[str, Any]]) -> None:
    by_epochs: dict[str, list[list[object]]] = {}
    for row in rows:
        by_epochs.setdefault(row["epochs"], []).append(
            [row["stage"], f"{row['parameters']:,}", f"{row['trained']:,}", row["state"], row["lr"], row["batch_norm"]]
        )
    columns = ("stage", "parameters", "trainable", "state", "learning rate", "BatchNorm")
    for epochs, cells in by_epochs.items():
        title = f"{setup.config.model.backbone}, {setup.config.strategy.name}, epochs {epochs}"
        render.table(title, columns, cells, right=("parameters", "trainable", "learning rate"))


def _show_config(config: "RunConfig", json: bool) -> None:
    from inat_ft.settings import describe

    keys = describe(config)
    rows = [(key["key"], key["value"], key["help"]) for key in keys]
    render.emit(json, keys, lambda: render.table("", ("key", "value", "description"), rows))
