"""Name the settings in an error in the syntax of its caller.

Errors name settings by the options of the command line. A command without an option of `inat-ft train` takes the key that the
option sets, and a function of the Python API takes arguments.
"""

import inspect
import json
import re
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

from inat_ft.errors import InatFtError

_CALLS = {
    "train --show-config": "RunConfig",
    "sweep create": "sweep",
    "tune --resume": "tune --out",
    "eval": "evaluate",
    **{name: name for name in ("compare", "predict", "split", "train", "tune")},
}
"""The commands in hints that have a function, and its name and first words."""

_NOT_VALUES = "and|applies|both|by|cannot|continues|does|for|has|if|must|only|or|requires|starts|takes|to|with"
_WORD = r"(?:'[^']*'|[;,](?=\S)|[^\s;,()'`])+"
_SETTING = re.compile(
    rf"inat-ft(?: ({'|'.join(_CALLS)})\b)?((?: {_WORD})*)"  # a command, and its words
    rf"|(?<![\w-])--([a-z-]+)(?: (?!(?:{_NOT_VALUES})\b)('[^']*'|[\w.:/\\~=+-]*\w))?"  # an option, and its value
)


def name_settings(
    error: BaseException, known: Collection[str] = (), function: Callable[..., Any] | None = None
) -> None:
    """Replace the options in an error, and in its notes, by what the caller takes.

    known: the options of the command, which are kept, as is another command. function: of the Python API, if it was called.
    """
    from inat_ft.settings import ALIASES

    arguments = _arguments(function) if function else {}

    def rewrite(found: re.Match[str]) -> str:
        command, words, option, value = found.groups()
        if option is None:
            return (function and command and _call(command, words)) or found[0]
        name = option.replace("-", "_")
        if argument := _argument(arguments, name, value):
            return argument
        if f"--{option}" in known or name not in ALIASES:
            return found[0]
        return f"{'--set ' * ('--set' in known)}{ALIASES[name]}={value}" if value else ALIASES[name]

    if isinstance(error, InatFtError):
        error.message, error.hint = (_SETTING.sub(rewrite, text) for text in (error.message, error.hint))
        error.args = (error.message,)
    if notes := getattr(error, "__notes__", []):
        error.__notes__ = [_SETTING.sub(rewrite, note) for note in notes]


def for_python(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the Python API whose errors name its arguments."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except (InatFtError, KeyboardInterrupt) as error:
            name_settings(error, function=function)
            raise

    call.__module__ = "inat_ft"  # where pickle finds it
    return call


def _arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the names and defaults of a function's arguments, with the short keys if it takes further options."""
    from inat_ft.settings import ALIASES

    own = inspect.signature(function).parameters
    return dict.fromkeys(ALIASES if "options" in own else ()) | {name: each.default for name, each in own.items()}


def _argument(arguments: dict[str, Any], name: str, value: str | None) -> str:
    """Return an option as one of the arguments, or an empty string if there is none."""
    if name == "set" and "settings" in arguments:
        key, _, value = (value or "").partition("=")
        return f'settings={{"{key}": {_literal(value)}}}' if key else "settings"
    if isinstance(arguments.get(key := name.removeprefix("no_")), bool):
        return f"{key}={not name.startswith('no_')}" + (f" {value}" if value else "")
    if name not in arguments or not value:
        return name if name in arguments else ""
    return f"{name}=[{_literal(value)}]" if arguments[name] == () else f"{name}={_literal(value)}"


def _literal(text: str) -> str:
    """Return a word of a command line in Python. Placeholders in capital letters, numbers and `...` stay as they are."""
    if re.fullmatch(r"[A-Z]+|\.{3}|-?\d+(\.\d+)?(e-?\d+)?", text):
        return text
    return json.dumps(text.strip("'"), ensure_ascii=False)


def _call(command: str, words: str) -> str:
    """Return a command as the call of a function, or an empty string if the function lacks one of the options."""
    import inat_ft

    name, _, first = _CALLS[command].partition(" ")
    known, given = _arguments(getattr(inat_ft, name)), []
    for option, value, word in re.findall(rf"--([a-z-]+)(?: (?!--)({_WORD}))?|({_WORD})", first + words):
        argument = _argument(known, option.replace("-", "_"), value) if option else _literal(word)
        if not argument:
            return ""
        given.append(argument if not option or "=" in argument else f"{argument}=...")
    return f"inat_ft.{name}({', '.join(given)})"
