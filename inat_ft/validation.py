"""Pydantic's validation errors as sentences for the user."""

import re
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from inat_ft.errors import ConfigError, did_you_mean

LIST_KEYS = "to list all keys: inat-ft train --show-config"
_TEXTS = {
    "missing": "required, but missing",
    "greater_than": "{got} is not greater than {gt}",
    "greater_than_equal": "{got} is less than the minimum, {ge}",
    "less_than": "{got} is not less than {lt}",
    "less_than_equal": "{got} is more than the maximum, {le}",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "{got} is not an integer"),
    **dict.fromkeys(("float_parsing", "float_type"), "{got} is not a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "{got} is not true or false"),
    "string_type": "{got} is not text",
}
"""Sentences for pydantic's types of errors."""


def format_validation_error(
    error: ValidationError, model: type[BaseModel], where: str = "", also: tuple[str, ...] = (), owner: str = "it"
) -> ConfigError:
    """Return one ConfigError for all errors that pydantic found, each with its key, its value and the most similar one.

    where: dotted key of `model`; also: further valid keys at its top level; owner: what has these keys, for the message.
    """
    lines = []
    for finding in error.errors():
        *sections, key = [str(part) for part in finding["loc"]] or [""]
        dotted = ".".join(part for part in (where, *sections, key) if part)
        got, kind, context = finding["input"], finding["type"], finding.get("ctx", {})
        if kind == "extra_forbidden":
            home = dotted.rpartition(".")[0]
            own = _fields(model, sections)
            near = did_you_mean(key, (*own, *(also if not sections else ())))
            near = near or f": {owner} has {', '.join(own) or 'no options'}"
            lines.append(f"unknown key '{key}'{f' in {home}' if home else ''}{near}")
        elif kind == "literal_error":
            choices = tuple(re.findall(r"'([^']*)'", context["expected"]))
            lines.append(f"{dotted}: {got!r} is not one of {', '.join(choices)}{did_you_mean(str(got), choices)}")
        elif str(got).strip("+-.").lower() == "nan":
            lines.append(f"{dotted}: {got} is not a finite number")
        elif kind in _TEXTS:
            lines.append(f"{dotted}: {_TEXTS[kind].format(got=repr(got), **context)}")
        elif kind == "value_error":
            lines.append(str(context["error"]))
        else:
            lines.append(f"{dotted}: {finding['msg'][0].lower()}{finding['msg'][1:]} (got {got!r})")
    return ConfigError("\n".join(lines), LIST_KEYS)


def _fields(model: type[BaseModel], sections: list[str]) -> tuple[str, ...]:
    """Return the keys of the section at a path. Sections can be optional, and values of a mapping."""
    here: Any = model
    for name in sections:
        if get_origin(here) is dict:
            here = get_args(here)[1]
        else:
            here = getattr(getattr(here, "model_fields", {}).get(name), "annotation", None)
        if get_origin(here) in (Union, UnionType):
            here = next((inner for inner in get_args(here) if hasattr(inner, "model_fields")), None)
    return tuple(getattr(here, "model_fields", ()))
