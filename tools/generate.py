"""Generate the files that repeat what the code states: `make generate`.

- inat_ft/cli/flags.json: the flags of `inat-ft train`, from the fields of the configuration
- tests/cli/options.txt: the options of every command
- docs/cli.md: the reference of the command line
- docs/reference/configuration.md and docs/reference/record.md: see tools/schemas.py

tests/cli/test_options.py fails when one of them is out of date.
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from inat_ft.cli import commands
from inat_ft.registry import get
from inat_ft.settings import PLUGIN_FLAGS, config_flags
from tools import schemas

ROOT = Path(__file__).parents[1]
FLAGS = ROOT / "inat_ft" / "cli" / "flags.json"
OPTIONS = ROOT / "tests" / "cli" / "options.txt"
REFERENCE = ROOT / "docs" / "cli.md"

_PANELS = {
    "strategy": "Model and strategy",
    "model": "Model and strategy",
    "data": "Data",
    "optim": "Optimization",
    "stop": "Optimization",
    "name": "Run",
    "seed": "Run",
    "compute": "Compute and tracking",
    "track": "Compute and tracking",
}
"""The panel of `train --help` for each section of the configuration, in the order of the help."""


def flags() -> str:
    """Return flags.json: names, type and help of each flag, with its choices or range and its default."""
    fields = [*config_flags()]
    for key, (group, plugin) in PLUGIN_FLAGS.items():
        option = key.rpartition(".")[2]
        fields.append((key, (f"--{option.replace('_', '-')}",), get(group, plugin).load().model_fields[option]))
    order = list(_PANELS)
    fields.sort(key=lambda each: order.index(each[0].partition(".")[0]))
    return json.dumps([_flag(*each) for each in fields], indent=1, ensure_ascii=False) + "\n"


def _flag(key: str, names: tuple[str, ...], field: Any) -> dict[str, Any]:
    kind, choices = _kind(field.annotation)
    text, _, default = field.description.replace("\n", " ").partition(" Default: ")
    default = default.removesuffix(".") or ("" if kind is bool else _text(field.default))
    bounds = {name: getattr(each, name) for each in field.metadata for name in _BOUNDS if hasattr(each, name)}
    notes = _notes(choices or _range(**bounds), default and f"default: {default}").replace("[", r"\[")
    return {"names": names, "type": kind.__name__, "panel": _PANELS[key.partition(".")[0]], "help": f"{text}{notes}"}


_BOUNDS = ("ge", "gt", "le", "lt")


def _kind(annotation: Any) -> tuple[type, str]:
    """Return the type of a value, which may be optional or a list, and its choices as `a|b`."""
    inner = [each for each in get_args(annotation) if each is not NoneType]
    if get_origin(annotation) is Literal:
        return str, "|".join(inner)
    return _kind(inner[0]) if inner else (annotation, "")


def _range(ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None) -> str:
    """Return `0<=x<1`, as Click writes it."""
    low = f"{_text(ge)}<=" if ge is not None else f"{_text(gt)}<" if gt is not None else ""
    high = f"<={_text(le)}" if le is not None else f"<{_text(lt)}" if lt is not None else ""
    if high or not low:
        return f"{low}x{high}" if high else ""
    return f"x>={low[:-2]}" if low.endswith("=") else f"x>{low[:-1]}"


def _notes(*notes: str) -> str:
    return "".join(f" [{note}]" for note in notes if note)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def all_commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its name: `train`, `sweep create`, ..."""
    for name in commands.listed():
        command = commands.load(name)
        inner = getattr(command, "commands", None)
        yield from {f"{name} {each}": inner[each] for each in inner}.items() if inner else [(name, command)]


def parameters(command: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the names of each parameter with its type, its help, and its choices, range and default."""
    signature = inspect.signature(command.callback).parameters
    for option in command.params:
        if option.name not in signature:  # --help
            continue
        kind, info = get_args(signature[option.name].annotation)[:2]
        kind, choices = _kind(kind)
        value = option.metavar or kind.__name__.lower().removeprefix("posix")
        names = ", ".join(sorted([*option.opts, *option.secondary_opts], key=lambda name: not name.startswith("--")))
        if option.param_type_name == "argument":
            names, value = option.name.upper(), value if option.required else f"{value}, optional"
        text, bracket, notes = (option.help or "").replace("\\[", "[").partition(" [")
        if not bracket:
            default = option.show_default if isinstance(option.show_default, str) else option.default
            shown = option.show_default and default is not None and default is not False and not option.required
            notes = _notes(
                choices or _range(ge=info.min, le=info.max),
                "required" if option.required and option.param_type_name == "option" else "",
                f"default: {_text(default)}" if shown else "",
                f"environment variable: {option.envvar}" if option.envvar else "",
            )
        yield f"{names}{'' if kind is bool else f' {value}'}", text, f"{bracket}{notes}".strip()


def options() -> str:
    """Return options.txt: a line for every parameter of every command."""
    lines = [f"{name} {names} {notes}".strip() for name, each in all_commands() for names, _, notes in parameters(each)]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return docs/cli.md: every command with its options."""
    pages = [_HEAD, "\n".join(f"- `inat-ft {name}`: {each.help}" for name, each in commands.listed().items())]
    for name, command in all_commands():
        text = re.sub(r"\[dim\](.*)\[/dim\]", r"    \1", (inspect.getdoc(command.callback) or "").replace("\\[", "["))
        rows = [f"| {_cell(f'`{names}`')} | {_cell(help, notes)} |" for names, help, notes in parameters(command)]
        pages.append("\n".join([f"## inat-ft {name}\n\n{text}\n\n| Option | Description |\n|---|---|", *rows]))
    return "\n\n".join(pages) + "\n"


def _cell(text: str, notes: str = "") -> str:
    notes = notes.replace("[", "`").replace("]", "`")
    return f"{text} {notes}".strip().replace("|", r"\|")


_HEAD = """# Command line

<!-- Generated by `make generate`; do not edit. -->

Every command takes `--help`, `--quiet` (print results only) and `--debug` (print the traceback of an error)."""


FILES = {
    FLAGS: flags,
    OPTIONS: options,
    REFERENCE: reference,
    schemas.CONFIGURATION: schemas.configuration,
    schemas.RECORD: schemas.record,
}


if __name__ == "__main__":
    for file, generate in FILES.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(generate(), encoding="utf-8")
