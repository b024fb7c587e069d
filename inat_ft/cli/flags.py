"""The flags of `inat-ft train` that set a key of the configuration.

`make generate` writes them to flags.json from the fields in config.py, so that `--help` need not import the configuration.
"""

import inspect
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated

import typer

_TYPES = {"bool": bool, "float": float, "int": int, "str": str}


def with_config_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags to the signature of a command that takes them as `**flags`. A flag that is not given is None."""
    added = []
    for flag in json.loads(files("inat_ft.cli").joinpath("flags.json").read_text(encoding="utf-8")):
        option = typer.Option(*flag["names"], help=flag["help"], rich_help_panel=flag["panel"], show_default=False)
        kind = Annotated[_TYPES[flag["type"]] | None, option]  # type: ignore[valid-type]  # a type made at run time
        name = flag["names"][0][2:].replace("-", "_")
        added.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind))
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*added, *own])  # type: ignore[attr-defined]  # read by inspect.signature
    return command


def escape_brackets(text: str) -> str:
    """Escape what rich would read as markup, such as `[default: 1]`."""
    return text.replace("[", r"\[")
