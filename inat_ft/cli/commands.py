"""The commands in the order in which a user meets them; a command's module is imported when it is called."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

COMMANDS = {
    "demo": ("demo:demo", "Run split, train, eval and compare on handwritten digits that come with it."),
    "fetch": ("fetch:fetch", "Fetch a data set."),
    "split": ("split:split", "Split images into train, validation and test, and write a manifest."),
    "train": ("train:train", "Fine-tune a classifier and write a run: weights, record, predictions."),
    "sweep": ("sweep:app", "Search for the best settings: create, run, status, best, soup, report, list, stop."),
    "eval": ("evaluate:evaluate", "Evaluate a run on the test set: metrics with intervals, figures, predictions."),
    "compare": ("compare:compare", "Compare classifiers on their test images: intervals, paired tests, one sentence."),
    "predict": ("predict:predict", "Predict the classes of images that have no labels."),
    "export": ("export:export", "Write a trained network as ONNX or another format, and compare it with PyTorch."),
    "record": ("record:app", "Make a record from another program's results, for `inat-ft compare`."),
    "strategies": ("strategies:strategies", "List the installed strategies, or the options of one."),
    "cache": ("cache:cache", "List the caches with their sizes, or clear them."),
    "doctor": ("doctor:doctor", "Check versions, device, folders, weights and plugins."),
}
"""The module and function of each command, and its line in the list of commands."""
HELP = {"help_option_names": ["-h", "--help"]}


def listed() -> dict[str, Any]:
    """Every command by name, with its line of help and nothing else."""
    return {name: TyperCommand(name, help=summary) for name, (_, summary) in COMMANDS.items()}


def load(name: str) -> Any:
    """The command of that name, imported."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(f"inat_ft.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
    alone.command(name)(found)
    return typer.main.get_command(alone)
