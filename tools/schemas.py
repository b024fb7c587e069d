"""Generate the reference of the configuration and of the record from their pydantic models: `make generate`."""

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from inat_ft.config import RunConfig
from inat_ft.records import RunRecord
from inat_ft.registry import BACKBONES, OPTIMIZERS, STRATEGIES, TRACKERS, get, plugins
from inat_ft.validation import Flag

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "docs" / "reference" / "configuration.md"
RECORD = ROOT / "docs" / "reference" / "record.md"

_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null", Any: "any value"}


def configuration() -> str:
    """Return the page of all keys of a configuration, by section, with the options of the built-in plugins."""
    sections = {name: field for name, field in RunConfig.model_fields.items() if _model(field.annotation)}
    general = [_setting(name, field, "") for name, field in RunConfig.model_fields.items() if name not in sections]
    parts = [_CONFIGURATION, _table("## General", general)]
    for name, field in sections.items():
        model = _model(field.annotation)
        rows = [_setting(key, info, f"{name}.") for key, info in model.model_fields.items()]
        parts.append(_table(f"## {name}", rows))
        if name in _GROUPS:
            parts += _plugin_options(name)
    return "\n\n".join(parts) + "\n"


_GROUPS = {"model": BACKBONES, "strategy": STRATEGIES, "optim": OPTIMIZERS, "track": TRACKERS}
_CHOICES = {"model": "--backbone", "strategy": "--mode", "optim": "--optimizer", "track": "--tracker"}


def _plugin_options(section: str) -> Iterator[str]:
    for plugin in (each for name, found in sorted(plugins(_GROUPS[section]).items()) for each in found):
        if not plugin.is_builtin:  # it happens to be installed
            continue
        fields = {
            name: info for name, info in get(plugin.group, plugin.name).load().model_fields.items() if name != "variant"
        }
        prefix = f"track.{plugin.name}." if section == "track" else f"{section}."
        rows = [_setting(name, info, prefix) for name, info in fields.items() if name != "variant"]
        if rows:
            yield _table(f"### {_CHOICES[section]} {plugin.name}", rows)


def _setting(key: str, field: FieldInfo, prefix: str) -> str:
    flag = next((each for each in field.metadata if isinstance(each, Flag)), None)
    names = flag and (flag.names or (f"--{key.replace('_', '-')}",))
    option = "<br>".join(f"`{name}`" for name in names) if names else ""
    text, _, default = _line(field.description).partition(" Default: ")
    if field.default_factory is None and field.default is not None and not field.is_required():
        default = f"`{_yaml(field.default)}`"
    elif not default:
        default = "required" if field.is_required() else "`null`"
    return f"| `{prefix}{key}` | {option} | {_type(field)} | {default.rstrip('.')} | {text} |"


def _table(title: str, rows: list[str]) -> str:
    return "\n".join([f"{title}\n", "| Key | Option | Type | Default | Description |", "|---|---|---|---|---|", *rows])


def record() -> str:
    """Return the page of all keys of record.json: one section for each model."""
    models: list[type[BaseModel]] = [RunRecord]
    parts = [_RECORD]
    for model in models:  # grows
        rows = []
        for name, field in model.model_fields.items():
            inner = [each for each in _models(field.annotation) if each not in models]
            models += inner
            need = "yes" if field.is_required() else ""
            rows.append(f"| `{name}` | {_type(field)} | {need} | {_line(field.description)} |")
        text = re.sub(r"\s+", " ", model.__doc__ or "") if model is not RunRecord else ""
        head = f"## {model.__name__}\n\n{text}".rstrip()
        parts.append("\n".join([f"{head}\n", "| Key | Type | Required | Description |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("|", r"\|")


def _model(annotation: Any) -> Any:
    return next(iter(_models(annotation)), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def _type(field: FieldInfo) -> str:
    return _bounded(_kind(field.annotation), field.metadata)


def _bounded(kind: str, metadata: Iterable[Any]) -> str:
    found = [(word, getattr(each, name)) for each in metadata for name, word in _BOUNDS.items() if hasattr(each, name)]
    return ", ".join([kind, *(f"{word} {bound:,}" for word, bound in found)])


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in inner)
    if origin is Annotated:
        metadata = [item for each in annotation.__metadata__ for item in getattr(each, "metadata", [each])]
        return _bounded(_kind(inner[0]), metadata)
    if origin in (Union, UnionType):
        return " or ".join(_kind(each) for each in inner if each is not NoneType)
    if origin in (list, tuple):
        return f"list of: {_kind(inner[0])}"
    if origin is dict:
        return f"mapping of names to: {_kind(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " or ".join(f"`{each.value}`" for each in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return _TYPES.get(annotation, str(annotation))


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


_CONFIGURATION = """# Configuration

<!-- Generated by `make generate`; do not edit. -->

A run has these settings. Set a key in a YAML file with `--config`, with its option, or with `--set`:

    inat-ft train --config run.yaml --lr 1e-3 --set optim.momentum=0.8

In a YAML file, the part of a key before the dot is a section:

```yaml
data: {image_size: 160}
optim: {lr: 1e-3, epochs: 10}
```

Later sources take precedence: defaults, then the file, then options and `--set`. `inat-ft train --show-config` prints the
values of a run. An unknown key, a wrong type or a value out of range is an error."""

_RECORD = """# Record

<!-- Generated by `make generate`; do not edit. -->

`record.json` in the folder of a run contains the configuration and the results. A record of another program requires
only `name` and `test_accuracy`. Unknown keys are kept and ignored. For programs, there is a
[JSON schema](../record.schema.json)."""
