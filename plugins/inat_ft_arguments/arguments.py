"""Check the arguments of the functions of the Python API, as the command line checks its options."""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from math import isfinite
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from inat_ft.errors import UsageError

_RANGES: dict[str, tuple[float, float]] = {
    "count": (1, 2**31),
    "image_size": (16, 1024),
    "limit": (1, 2**31),
    "margin": (0, 1),
    "max_pixels": (1, 2**63),
    "rollup": (0, 1),
    "seed": (0, 2**32 - 1),
    "test_fraction": (0, 0.9),
    "val_fraction": (0.01, 0.9),
    "workers": (0, 256),
}
"""Least and largest values that any command declares for the option."""
_WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "a string",
    os.PathLike: "a path",
    Mapping: "a mapping with string keys",
}
_MAX_SHOWN = 60

Function = Callable[..., Any]


def check_arguments(function: Function) -> Function:
    """Return the function with checked arguments: a bad value raises UsageError with the name of the argument.

    A single value is accepted where a list is expected.
    """
    signature, hints = inspect.signature(function), _hints(function)

    @wraps(function)
    def checked(*positional: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*positional, **named)
        except TypeError:
            return function(*positional, **named)  # raises a TypeError with the name of the function
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                continue  # settings, which the configuration checks
            values = value if kind is inspect.Parameter.VAR_POSITIONAL else [value]
            accepted = [_accepted(name, each, hints[name]) for each in values]
            bound.arguments[name] = tuple(accepted) if values is value else accepted[0]
        return function(*bound.args, **bound.kwargs)

    return checked


def _hints(function: Function) -> dict[str, Any]:
    # a module may import a name for annotations only; an argument of such a type is not checked
    names: dict[str, Any] = {"TrainCallbacks": Any, "CrossValidation": Any}
    if "RunLike" not in function.__globals__:
        names["RunLike"] = str | os.PathLike[str]
    if "PathLike" not in function.__globals__:
        names["PathLike"] = os.PathLike
    return get_type_hints(function, {**function.__globals__, **names})


def _accepted(name: str, value: Any, hint: Any) -> Any:
    """Return the value, or a tuple of it if a sequence is expected. Raises UsageError."""
    if name == "callbacks":
        _require_callbacks(value)
    elements = [get_args(option)[0] for option in _options(hint) if _kind(option) in (Sequence, Iterable)]
    if elements and len(_options(hint)) == 1 and _fits(value, elements[0]):
        value = (value,)
    elif elements and isinstance(value, Iterable) and not isinstance(value, str | bytes | os.PathLike | Mapping):
        value = list(value)
    if not _fits(value, hint):
        raise UsageError(f"{name}={_shown(value)} is not {_expected(hint)}", f"pass {name} as {_expected(hint)}")
    texts = [value] if isinstance(value, str | os.PathLike) else value if isinstance(value, list | tuple) else []
    for text in texts:
        if isinstance(text, str) and "\0" in text:
            raise UsageError(f"{name}={_shown(value)} contains a null character", "remove the null character")
        if isinstance(text, str) and not text and os.PathLike in map(_kind, _options(hint)):
            raise UsageError(f"{name} is an empty path", f"pass the path of a file or a folder as {name}")
    if name in _RANGES and value is not None:
        least, most = _RANGES[name]
        if not least <= value <= most:
            within = f"at least {least:g}" if most >= 2**31 and name != "seed" else f"from {least:.10g} to {most:.10g}"
            raise UsageError(f"{name}={_shown(value)} is out of range", f"{name} must be {within}")
    return value


def _require_callbacks(value: Any) -> None:
    from inat_ft.setup import TrainCallbacks

    if value is not None and not isinstance(value, TrainCallbacks):
        raise UsageError(
            f"callbacks={_shown(value)} is not a TrainCallbacks", "pass inat_ft.TrainCallbacks(on_epoch=FUNCTION)"
        )


def _options(hint: Any) -> Sequence[Any]:
    """Return the alternatives of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def _kind(hint: Any) -> Any:
    return get_origin(hint) or hint


def _fits(value: Any, hint: Any) -> bool:
    options = _options(hint)
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    kind, parts = _kind(hint), get_args(hint)
    if kind is Any:
        return True
    if kind is Literal:
        return isinstance(value, str) and value in parts
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and (isinstance(value, Integral) or isfinite(value))
    if kind is Callable:
        return callable(value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if kind in (Sequence, Iterable):
        return isinstance(value, list | tuple) and all(_fits(each, parts[0]) for each in value)
    return isinstance(value, kind)


def _expected(hint: Any) -> str:
    """Return what a hint accepts, in words: `text or a path`."""
    words = []
    for option in [option for option in _options(hint) if option is not NoneType]:
        kind, parts = _kind(option), get_args(option)
        if kind is Literal:
            words += [repr(part) for part in parts]
        elif kind in (Sequence, Iterable):
            words.append(f"a list of {_expected(parts[0])}".replace("list of a string", "list of strings"))
        else:
            words.append(_WORDS.get(kind) or ("a callable" if kind is Callable else f"a {kind.__name__}"))
    return " or ".join(words)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
