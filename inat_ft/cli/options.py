"""Options that several commands share, and the flags of `inat-ft train` that set a key of the configuration.

`make generate` writes these flags to flags.json from the fields in config.py, so that `--help` need not import the
configuration.
"""

import inspect
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from inat_ft.paths import check_writable

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", envvar="INAT_FT_RUNS_DIR", help="Folder for runs.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(envvar="INAT_FT_CACHE_DIR", help="Folder for caches.", show_default="the platform's cache folder"),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Random seed.")]

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings, as in `inat-ft train`.")]
Backbone = Annotated[str | None, typer.Option(help="Network, as in `inat-ft train`.", show_default="resnet50")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any key, such as data.image_size=160. Can be repeated."),
]

RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, or its record.json.")]
Tta = Annotated[
    Literal["none", "flip"],
    typer.Option(help="Test-time augmentation; flip averages each image with its mirror image."),
]
ImageSize = Annotated[
    int | None, typer.Option(help="Image size in pixels. Default: that of the run.", min=16, max=1024)
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:N, or mps.")]
Precision = Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="Numeric precision; fp32 is exact on a CPU.")]
Taxa = Annotated[
    str | None,
    typer.Option(
        help="Taxa of the classes: a CSV (label,genus,family...), or `folders` for folders named as in iNaturalist 2021.",
        metavar="FILE|folders",
    ),
]
Rollup = Annotated[
    float, typer.Option(min=0, max=1, help="With --taxa: report the lowest rank with a taxon at least this probable.")
]
Coverage = Annotated[
    float | None,
    typer.Option(help="Calibrate prediction sets that contain the true class with this probability, such as 0.9."),
]
ByClass = Annotated[bool, typer.Option("--by-class", help="With --coverage: calibrate each class with its own images.")]

_TYPES = {"bool": bool, "float": float, "int": int, "str": str}


def output(help: str, kind: str = "file", **settings: Any) -> Any:
    """Return an option that names a `file`, a `folder`, or either (empty) to write; it is checked before the command runs."""

    def check(param: typer.CallbackParam, value: Path | None) -> Path | None:
        if value is not None:
            check_writable(value, kind, param.opts[0])
        return value

    return typer.Option(help=help, callback=check, **settings)


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
