"""The list of commands. A command's module is imported when the command is called."""

import inspect
import re
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from inat_ft.errors import PluginError

BUILTIN = {
    "split": ("split:split", "Split images into training, validation and test sets."),
    "train": ("train:train", "Fine-tune a classifier."),
    "eval": ("evaluate:evaluate", "Evaluate a run on the test set."),
    "compare": ("compare:compare", "Compare evaluated runs with significance tests."),
    "predict": ("evaluate:predict", "Classify images with a trained network."),
    "export": ("evaluate:export", "Export a trained network, for example to ONNX."),
}
"""The module and function of each built-in command, and its summary in `inat-ft --help`."""
HELP = {"help_option_names": ["-h", "--help"]}
WRAPPED = re.compile(r"(?<!\n)\n(?!\n|\[dim\])")
"""A line break inside a paragraph of a docstring, which rich would keep."""


def builtin() -> dict[str, Any]:
    """Return a placeholder with the summary for each built-in command, by name."""
    return {name: TyperCommand(name, help=summary) for name, (_, summary) in BUILTIN.items()}


def listed() -> dict[str, Any]:
    """Return a placeholder for each command, by name: those of plugins with the first sentence of their docstrings.

    A name such as `sweep.soup` belongs to the command `sweep` and is not returned.
    """
    found = builtin()
    for name in _plugin_names():
        if "." not in name and name not in BUILTIN:
            plugin = _plugin(name)
            text = plugin.info.help if isinstance(plugin, typer.Typer) else inspect.getdoc(plugin)
            summary = (text or "").partition("\n")[0].partition(". ")[0]
            found[name] = TyperCommand(name, help=f"{summary.removesuffix('.')}.")
    return found


def load(name: str) -> Any:
    """Import a command, with the subcommands that plugins add to it. Return None for an unknown name."""
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name][0].partition(":")
        found = getattr(import_module(f"inat_ft.cli.{module}"), attribute)
    elif name in _plugin_names():
        found = _plugin(name)
    else:
        return None
    if not isinstance(found, typer.Typer):
        return _command(name, found)
    group = typer.main.get_group(found)
    for inner in _plugin_names():
        parent, _, own = inner.partition(".")
        if parent == name and own:
            group.commands.setdefault(own, _command(own, _plugin(inner)))
    return group


def _plugin_names() -> list[str]:
    from inat_ft import registry  # not needed for a built-in command

    return list(registry.plugins(registry.COMMANDS))


def _plugin(name: str) -> Any:
    """Return the function or Typer app of a plugin. If it is broken, return a function that raises the error."""
    from inat_ft import registry

    try:
        return registry.get(registry.COMMANDS, name).load()
    except PluginError as error:
        problem = error

    def fail() -> None:
        raise problem

    fail.__doc__ = problem.message
    return fail


def _command(name: str, function: Any) -> Any:
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
    alone.command(name)(function)
    return typer.main.get_command(alone)
