"""`inat-ft train`: flags become overrides, the rest is the engine's."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render

if TYPE_CHECKING:
    from inat_ft.config import RunConfig
    from inat_ft.records import RunRecord
    from inat_ft.settings import Override
    from inat_ft.training import Setup

_MORE_EPOCHS = 30
_MOVABLE = {"data.split", "data.root"}
"""The keys that may change when a run is resumed: where its data are."""
_TUNE, _DATA, _LEARN, _RUN = "What learns", "Images", "How it learns", "The run"


def _flag(names: str, help: str, panel: str, **range_: Any) -> Any:
    """An option whose help ends with its default; the bracket is escaped, since Typer reads it as markup."""
    help = help.replace("[default: ", "\\[default: ")
    return typer.Option(*names.split(), help=help, rich_help_panel=panel, show_default=False, **range_)


def train(
    mode: Annotated[
        str | None, _flag("--mode -m", "Strategy: head, partial, full, or a plugin. [default: head]", _TUNE)
    ] = None,
    unfreeze_from: Annotated[
        str | None,
        _flag("--unfreeze-from", "First stage that learns with --mode partial. [default: layer3 of a ResNet]", _TUNE),
    ] = None,
    backbone: Annotated[
        str | None,
        _flag("--backbone", "Network: any of torchvision's, timm:NAME, cnn, a plugin. [default: resnet50]", _TUNE),
    ] = None,
    weights: Annotated[
        str | None,
        _flag("--weights", "imagenet, none, or a file. [default: imagenet, where there are such weights]", _TUNE),
    ] = None,
    dropout: Annotated[
        float | None,
        _flag("--dropout", "Share of features dropped before the last layer, 0 to 1. [default: 0.3]", _TUNE),
    ] = None,
    split: Annotated[
        str | None, _flag("--split", "Manifest of `inat-ft split`. [default: the newest under splits/]", _DATA)
    ] = None,
    image_size: Annotated[
        int | None,
        _flag("--image-size", "Side of the images in pixels, 16 to 1024. [default: what the weights take; 224]", _DATA),
    ] = None,
    eval_image_size: Annotated[
        int | None,
        _flag("--eval-image-size", "The same for validation and test. [default: that of the training]", _DATA),
    ] = None,
    resize: Annotated[
        str | None,
        _flag("--resize", "squash (whole image), crop (centre) or pad (keep proportions). [default: squash]", _DATA),
    ] = None,
    augment: Annotated[
        str | None, _flag("--augment", "none, flip, or standard (crop, flip, colours). [default: none]", _DATA)
    ] = None,
    views: Annotated[
        int | None,
        _flag("--views", "With --augment standard: number of fixed variations of an image. [default: 0]", _DATA),
    ] = None,
    balance: Annotated[
        str | None, _flag("--balance", "Against class imbalance: none, weights, sampler. [default: none]", _DATA)
    ] = None,
    epochs: Annotated[
        int | None, _flag("--epochs", "Passes over the images, at most; 1 or more. [default: 5]", _LEARN)
    ] = None,
    batch_size: Annotated[
        int | None, _flag("--batch-size", "Images per step, 1 or more. [default: 64]", _LEARN)
    ] = None,
    lr: Annotated[float | None, _flag("--lr", "Learning rate, above 0. [default: 1e-4]", _LEARN)] = None,
    optimizer: Annotated[str | None, _flag("--optimizer", "adam, adamw or sgd. [default: adam]", _LEARN)] = None,
    weight_decay: Annotated[float | None, _flag("--weight-decay", "0 or more. [default: 0]", _LEARN)] = None,
    label_smoothing: Annotated[float | None, _flag("--label-smoothing", "0 to 1. [default: 0]", _LEARN)] = None,
    schedule: Annotated[str | None, _flag("--schedule", "constant or cosine. [default: constant]", _LEARN)] = None,
    warmup_epochs: Annotated[
        float | None, _flag("--warmup-epochs", "Epochs of linear warm-up, 0 or more. [default: 0]", _LEARN)
    ] = None,
    layer_decay: Annotated[
        float | None,
        _flag("--layer-decay", "Factor on the rate for each block further from the head. [default: 1]", _LEARN),
    ] = None,
    clip_norm: Annotated[float | None, _flag("--clip-norm", "Longest gradient; 0 is any. [default: 0]", _LEARN)] = None,
    mixup: Annotated[
        float | None, _flag("--mixup", "Blend images, by Beta(x, x), such as 0.2; 0 is off. [default: 0]", _LEARN)
    ] = None,
    cutmix: Annotated[
        float | None, _flag("--cutmix", "Paste boxes of images, by Beta(x, x), such as 1. [default: 0]", _LEARN)
    ] = None,
    regularize: Annotated[
        str | None, _flag("--regularize", "none, or l2-sp (towards the start). [default: none]", _LEARN)
    ] = None,
    average: Annotated[
        str | None, _flag("--average", "Average of weights: none, ema, swa or wise-ft. [default: none]", _LEARN)
    ] = None,
    alpha: Annotated[
        float | None, _flag("--alpha", "Share of the fine-tuned weights in wise-ft, 0 to 1. [default: 0.5]", _LEARN)
    ] = None,
    accumulate: Annotated[
        int | None, _flag("--accumulate", "Parts of a batch, one after the other. [default: 1]", _LEARN)
    ] = None,
    patience: Annotated[
        int | None,
        _flag("--patience", "Epochs without improvement before training stops; 0 disables. [default: 3]", _LEARN),
    ] = None,
    monitor: Annotated[
        str | None,
        _flag(
            "--monitor",
            "Metric of early stopping and the best epoch: val_accuracy, val_loss, train_accuracy or train_loss. "
            "[default: val_accuracy]",
            _LEARN,
        ),
    ] = None,
    seed: Annotated[int | None, _flag("--seed", "Same seed, same result; 0 or more. [default: 0]", _RUN)] = None,
    seeds: Annotated[
        int,
        _flag(
            "--seeds", "Train this many times, with this seed and the next ones. [default: 1]", _RUN, min=1, max=1000
        ),
    ] = 1,
    name: Annotated[str | None, _flag("--name", "Name of the run. [default: backbone, strategy, number]", _RUN)] = None,
    device: Annotated[str | None, _flag("--device", "auto, cpu, cuda, cuda:N or mps. [default: auto]", _RUN)] = None,
    precision: Annotated[
        str | None, _flag("--precision", "auto, fp32 or bf16. [default: auto, bf16 where the hardware has it]", _RUN)
    ] = None,
    workers: Annotated[
        int | None, _flag("--workers", "Threads that decode; 0 is one a core. [default: 0]", _RUN)
    ] = None,
    cache: Annotated[str | None, _flag("--cache", "auto, none, packed or prefix. [default: auto]", _RUN)] = None,
    wandb: Annotated[str | None, _flag("--wandb", "Log to W&B: off, offline or online. [default: off]", _RUN)] = None,
    tracker: Annotated[
        list[str] | None,
        _flag(
            "--tracker", "Log to this tracker, such as wandb; may be repeated. [default: none]", _RUN, metavar="NAME"
        ),
    ] = None,
    compile: Annotated[bool | None, _flag("--compile", "Compile what learns with torch.compile.", _RUN)] = None,
    deterministic: Annotated[
        bool | None, _flag("--deterministic", "The same bits each time, on a GPU too.", _RUN)
    ] = None,
    config: Annotated[Path | None, _flag("--config -c", "YAML file of settings; flags override it.", _RUN)] = None,
    set_: Annotated[
        list[str] | None,
        _flag("--set -s", "Any key: --set optim.momentum=0.8; may be repeated.", _RUN, metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[
        Path | None, _flag("--resume", "Go on with a run that was interrupted.", _RUN, metavar="RUN")
    ] = None,
    dry_run: Annotated[bool, _flag("--dry-run", "Show settings and what would learn; train nothing.", _RUN)] = False,
    show_config: Annotated[bool, _flag("--show-config", "List every key with its meaning and value.", _RUN)] = False,
    find_lr: Annotated[
        bool, _flag("--find-lr", "Test rising learning rates instead: a picture and a suggestion.", _RUN)
    ] = False,
    json: options.Json = False,
    runs_dir: options.RunsDir = Path("runs"),
    cache_dir: options.CacheDir = None,
) -> None:
    """Fine-tune a classifier and write a run: weights, record, predictions on the validation images.

    [dim]inat-ft train --mode head --dropout 0.3[/dim]
    [dim]inat-ft train --mode partial --unfreeze-from layer4 --lr 1e-4[/dim]
    [dim]inat-ft train --backbone cnn --image-size 64 --epochs 10   (from scratch)[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.settings import ALIASES, load_config, parse_override

    flags = {key: value for key, value in locals().items() if key in (*ALIASES, "seed", "name") and value is not None}
    overrides = [(ALIASES.get(key, key), value) for key, value in flags.items()]
    overrides += [(f"track.{name}", {}) for names in tracker or () for name in names.split(",")]
    overrides += [parse_override(text) for text in set_ or ()]
    if resume is not None:
        if config or {key for key, _ in overrides if not key.startswith("track.")} - _MOVABLE:
            raise UsageError(
                "--resume takes its settings from the run, except --split, --set data.root and those of trackers",
                f"run: inat-ft train --resume {resume}",
            )
        resume = _run_to_resume(resume, runs_dir)
        config = resume / "config.yaml"
    resolved = load_config(config, overrides)
    if resume is not None:
        _require_split(resolved, resume)
    _require_effect(resolved, overrides)
    if config and not resume and "name" not in dict(overrides) and config.resolve().parent.name == resolved.name:
        resolved = resolved.model_copy(update={"name": None})  # a run's settings are taken over, its name stays its own
    if show_config:
        _show_config(resolved, json)
    elif dry_run:
        _dry_run(resolved, json)
    elif find_lr:
        _find_lr(resolved, runs_dir, cache_dir, json)
    elif seeds > 1:
        if resume is not None:
            raise UsageError("--seeds begins new runs; --resume goes on with one", "leave one of them out")
        _train_seeds(resolved, seeds, runs_dir, cache_dir, json)
    else:
        _train(resolved, resume, runs_dir, cache_dir, json)


def _run_to_resume(run: Path, runs_dir: Path) -> Path:
    from inat_ft.errors import UsageError

    found = next((folder for folder in (run, runs_dir / run) if (folder / "config.yaml").is_file()), None)
    if found is None:
        raise UsageError(
            f"{run} is not a run that can be resumed: it has no config.yaml",
            f"give its folder, or the name of a run in {runs_dir} (--runs-dir)",
        )
    return found


def _require_split(config: "RunConfig", run: Path) -> None:
    """Refuse to resume a run whose manifest is missing, and say how to name its new place."""
    from inat_ft.errors import UsageError
    from inat_ft.settings import expand_user

    split = config.data.split
    if split and not expand_user(split).is_file() and not (run / "record.json").exists():
        raise UsageError(
            f"the manifest of {run} is missing: {split}", f"name its place: inat-ft train --resume {run} --split FILE"
        )


def _require_effect(config: "RunConfig", overrides: "list[Override]") -> None:
    """Refuse an option that comes to nothing, and tell of plugins that are not used."""
    from inat_ft.config import shadowed_plugins
    from inat_ft.errors import UsageError

    if "optim.alpha" in dict(overrides) and config.optim.average != "wise-ft":
        raise UsageError("--alpha is an option of wise-ft, which is not asked for", "add: --average wise-ft")
    if "data.views" in dict(overrides) and config.data.views and config.data.augment != "standard":
        raise UsageError(
            "--views is an option of --augment standard, which is not asked for", "add: --augment standard"
        )
    for plugin in shadowed_plugins(config):
        render.warn(f"{plugin} is not used: the name is inat-ft's own or torchvision's; pip uninstall {plugin.package}")


def _train(config: "RunConfig", resume: Path | None, runs_dir: Path, cache_dir: Path | None, json: bool) -> None:
    from inat_ft.cli.training_progress import callbacks
    from inat_ft.paths import cache_folder
    from inat_ft.training import Directories, train

    with _stoppable():
        record, directory = train(config, Directories(runs_dir, cache_folder(cache_dir)), callbacks(config), resume)
    if not render.is_main_process():
        return
    _advise(record)
    if json:
        render.echo_json({**record.model_dump(mode="json"), "directory": directory.as_posix()})
    else:
        _show_run(record, directory)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Leave in order at Ctrl-C, and at SIGTERM, which torchrun and schedulers send, and say how to continue."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        notes = getattr(
            stopped, "__notes__", ["no epoch was finished, so nothing was saved; run the same command again"]
        )
        render.warn("; ".join(["stopped", *notes]))
        raise


def _advise(record: "RunRecord") -> None:
    """Say on stderr why more training may help, and what to try."""
    from inat_ft.records import Advice

    reasons = []
    if Advice.FEW_STEPS in record.advice:
        reasons.append(f"{record.optimizer_steps} optimizer step{'s' * (record.optimizer_steps != 1)} in all")
    if Advice.LOSS_STILL_FALLING in record.advice:
        before, last = (epoch.train_loss for epoch in record.history[-2:])
        reasons.append(f"the training loss was still falling ({before:.4f} to {last:.4f} in the last epoch)")
    if reasons:
        stop = record.config["stop"]["patience"] and record.stopped_early
        epochs = min(10_000, max(_MORE_EPOCHS, 3 * len(record.history)))
        longer = f"--epochs {epochs}{' --patience 0' if stop else ''}"
        render.info(f"{'; '.join(reasons)}: try the same command with {longer}, or with --find-lr")


def _train_seeds(config: "RunConfig", seeds: int, runs_dir: Path, cache_dir: Path | None, json: bool) -> None:
    from statistics import mean, stdev

    from inat_ft.cli.training_progress import callbacks
    from inat_ft.paths import cache_folder
    from inat_ft.training import Directories, release_memory, train

    directories, runs = Directories(runs_dir, cache_folder(cache_dir)), []
    for seed in range(config.seed, config.seed + seeds):
        render.info(f"seed {seed}")
        name = f"{config.name}-seed{seed}" if config.name else None
        release_memory()
        gc.freeze()  # the next collection skips the objects that are left
        with _stoppable():
            runs.append(train(config.model_copy(update={"seed": seed, "name": name}), directories, callbacks(config)))
    if not render.is_main_process():
        return
    _advise(runs[0][0])
    accuracies = [record.val_accuracy or 0.0 for record, _ in runs]
    if json:
        names = [directory.as_posix() for _, directory in runs]
        render.echo_json(
            {
                "mean": mean(accuracies),
                "deviation": stdev(accuracies),
                "val_accuracy": accuracies,
                "directories": names,
            }
        )
        return
    for record, directory in runs:
        render.echo(f"seed {record.seed}: validation accuracy {record.val_accuracy:.4f}  {directory}")
    render.echo(f"{seeds} seeds: validation accuracy {mean(accuracies):.4f} ± {stdev(accuracies):.4f}")
    render.info("next: inat-ft eval each of them, then inat-ft compare --group with another configuration's")


def _find_lr(config: "RunConfig", runs_dir: Path, cache_dir: Path | None, json: bool) -> None:
    from inat_ft.cli.training_progress import callbacks
    from inat_ft.evaluation.lr_figure import draw_lr_range
    from inat_ft.paths import cache_folder
    from inat_ft.training import Directories, find_lr

    found = find_lr(config, Directories(runs_dir, cache_folder(cache_dir)), callbacks(config))
    if not render.is_main_process():
        return
    stem = config.name or f"{config.model.backbone.replace(':', '-')}-{config.strategy.name}"
    picture = draw_lr_range(found.lrs, found.losses, found.smooth, found.suggestion, runs_dir / f"{stem}-lr-range")
    if json:
        render.echo_json(
            {
                "suggestion": found.suggestion,
                "lr": found.lrs,
                "loss": found.losses,
                "smooth": found.smooth,
                "picture": picture.as_posix(),
            }
        )
        return
    render.echo(f"picture: {picture}")
    if found.suggestion is None:
        render.warn("the loss does not fall at any rate, so that there is nothing to suggest")
    else:
        render.echo(f"suggested learning rate: {found.suggestion:.1e}, where the loss falls fastest")
        render.info(f"next: the same command with --lr {found.suggestion:.1e} in place of --find-lr")


def _show_run(record: "RunRecord", directory: Path) -> None:
    accuracy = record.val_accuracy or 0.0
    epochs = f"epoch {record.best_epoch} of {len(record.history)}"
    early = ", stopped early" if record.stopped_early else ""
    monitor = record.config["stop"].get("monitor", "val_accuracy")
    value = getattr(record.history[(record.best_epoch or 1) - 1], monitor)
    shown = "" if monitor == "val_accuracy" else f", {monitor} {'not finite' if value is None else f'{value:.4f}'}"
    render.echo(f"best: {epochs}{early}{shown}, validation accuracy {accuracy:.4f} in {record.seconds['total']:.1f} s")
    render.echo(f"run:  {directory}")
    render.info(f"next: inat-ft eval {directory}")


def _dry_run(config: "RunConfig", json: bool) -> None:
    from inat_ft.engine.summary import stage_table
    from inat_ft.settings import dump_config
    from inat_ft.training import prepare

    setup = prepare(config, load_weights=False)
    for info in setup.warnings:
        render.warn(info)
    rows = stage_table(setup.plan, setup.config.optim.lr)
    if json:
        render.echo_json({"config": setup.config.model_dump(mode="json"), "stages": rows})
        return
    render.echo(dump_config(setup.config).rstrip())
    _show_stages(setup, rows)


def _show_stages(setup: "Setup", rows: list[dict[str, Any]]) -> None:
    by_epochs: dict[str, list[list[object]]] = {}
    for row in rows:
        by_epochs.setdefault(row["epochs"], []).append(
            [row["stage"], f"{row['parameters']:,}", f"{row['trained']:,}", row["state"], row["lr"], row["batch_norm"]]
        )
    columns = ("stage", "parameters", "trained", "state", "learning rate", "BatchNorm")
    for epochs, cells in by_epochs.items():
        title = f"{setup.config.model.backbone}, {setup.config.strategy.name}, epochs {epochs}"
        render.table(title, columns, cells, right=("parameters", "trained", "learning rate"))


def _show_config(config: "RunConfig", json: bool) -> None:
    from inat_ft.settings import describe

    keys = describe(config)
    if json:
        render.echo_json(keys)
    else:
        render.table("", ("key", "value", "meaning"), [(key["key"], key["value"], key["help"]) for key in keys])
