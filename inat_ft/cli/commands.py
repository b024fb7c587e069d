"""The list of commands. A command's module is imported when the command is called."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

COMMANDS = {
    "demo": ("demo:demo", "Run split, train, eval and compare on embedded images of handwritten digits."),
    "fetch": ("fetch:fetch", "Download a data set."),
    "split": ("split:split", "Split images into training, validation and test sets."),
    "train": ("train:train", "Fine-tune a classifier."),
    "sweep": ("sweep:app", "Search for the best hyperparameters."),
    "eval": ("evaluate:evaluate", "Evaluate a run on the test set."),
    "compare": ("compare:compare", "Compare evaluated runs with significance tests."),
    "predict": ("predict:predict", "Classify images with a trained network."),
    "export": ("export:export", "Export a trained network, for example to ONNX."),
    "record": ("record:app", "Import the results of other programs for `inat-ft compare`."),
    "strategies": ("strategies:strategies", "List the fine-tuning strategies, or the options of one."),
    "cache": ("cache:cache", "List or clear the caches."),
    "doctor": ("doctor:doctor", "Check the installation, the device and the plugins."),
}
"""The module and function of each command, and its summary in `inat-ft --help`."""
HELP = {"help_option_names": ["-h", "--help"]}


def listed() -> dict[str, Any]:
    """Return a placeholder with the summary for each command, by name."""
    return {name: TyperCommand(name, help=summary) for name, (_, summary) in COMMANDS.items()}


def load(name: str) -> Any:
    """Import a command."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(f"inat_ft.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
    alone.command(name)(found)
    return typer.main.get_command(alone)
