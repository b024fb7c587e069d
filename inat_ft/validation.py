"""Metadata of the fields of the configuration, and pydantic's validation errors as sentences for the user."""

import re
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

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


@dataclass(frozen=True)
class Flag:
    """Metadata that makes a field a flag of `inat-ft train`, and a short key of `--set`: run `make generate`."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Allowed:
    """Metadata of a field with a pattern: what it accepts, in words."""

    text: str


def format_validation_error(
    error: ValidationError, model: type[BaseModel], where: str = "", also: tuple[str, ...] = (), owner: str = "it"
) -> ConfigError:
    """Return one ConfigError for all errors that pydantic found, each with its key, its value and the most similar one.

    where: dotted key of `model`; also: further valid keys at its top level; owner: what has these keys, for the message.
    """
    lines = []
    for finding in error.errors():
        *sections, key = [str(part) for part in finding["loc"]] or [""]
        fields = _fields(model, sections)
        if finding["type"] == "extra_forbidden":
            home = ".".join(part for part in (where, *sections) if part)
            near = did_you_mean(key, (*fields, *(also if not sections else ())))
            near = near or f": {owner} has {', '.join(fields) or 'no options'}"
            lines.append(f"unknown key '{key}'{f' in {home}' if home else ''}{near}")
        else:
            dotted = ".".join(part for part in (where, *sections, key) if part)
            lines.append(_sentence(finding, dotted, fields.get(key)))
    return ConfigError("\n".join(lines), LIST_KEYS)


def _sentence(finding: ErrorDetails, key: str, field: FieldInfo | None) -> str:
    """Return why the value of a dotted key was rejected."""
    got, kind, context = finding["input"], finding["type"], finding.get("ctx", {})
    allowed = [each.text for each in (field.metadata if field else ()) if isinstance(each, Allowed)]
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = tuple(re.findall(r"'([^']*)'", context["expected"]))
        problem = f"{got!r} is not one of {', '.join(choices)}{did_you_mean(str(got), choices)}"
    elif kind.startswith(("greater", "less", "finite")) and str(got).strip("+-.").lower() == "nan":
        problem = f"{got} is not a finite number"
    elif kind in _TEXTS:
        problem = _TEXTS[kind].format(got=repr(got), **context)
    elif kind == "string_pattern_mismatch" and allowed:
        problem = f"{got!r} is not allowed; expected {allowed[0]}"
    else:
        problem = f"{finding['msg'][0].lower()}{finding['msg'][1:]} (got {got!r})"
    return f"{key}: {problem}"


def _fields(model: type[BaseModel], sections: list[str]) -> dict[str, FieldInfo]:
    """Return the fields of the section at a path. Sections can be optional, and values of a mapping."""
    here: Any = model
    for name in sections:
        if get_origin(here) is dict:
            here = get_args(here)[1]
        else:
            here = getattr(getattr(here, "model_fields", {}).get(name), "annotation", None)
        if get_origin(here) in (Union, UnionType):
            here = next((inner for inner in get_args(here) if hasattr(inner, "model_fields")), None)
    return dict(getattr(here, "model_fields", {}))
