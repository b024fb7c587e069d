"""Read and write YAML with the core schema of YAML 1.2.

PyYAML implements YAML 1.1, where `064` is 52, `12:30:45` is 45045 and `no` is false. In the core schema of YAML 1.2 they are
the number 64 and two strings. The loader also rejects duplicate keys.
"""

import math
import re
from typing import Any, ClassVar

import yaml

_MAX_DIGITS = 1000  # characters of a number
_MAX_VALUES, _MAX_DEPTH = 100_000, 100  # of a file, after the expansion of aliases
_BREAKS = re.compile("[\\r\\x85\\u2028\\u2029]")
_TAG = "tag:yaml.org,2002:"
_BASES = {"0o": 8, "0x": 16}
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
"""The types of unquoted scalars other than strings, with their patterns."""


class _Loader(yaml.SafeLoader):
    """Read YAML 1.2. Raises yaml.MarkedYAMLError for unsupported input."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in ("str", "seq", "map")
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._values = 0, 0
        self._sizes: dict[Any, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a value, unless it would make the file too large or too deep."""
        event, before = self.peek_event(), self._values  # type: ignore[no-untyped-call]  # PyYAML declares no types here
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _refusal(event, "it is nested too deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._values += self._sizes.get(node, _MAX_VALUES) if isinstance(event, yaml.AliasEvent) else 1
        if self._values > _MAX_VALUES:
            raise _refusal(event, f"it has more than {_MAX_VALUES:,} values, or contains itself")
        self._sizes[node] = self._values - before
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                value = self.construct_object(key)
                if value in seen:
                    raise _refusal(key, f"the key '{key.value}' is a duplicate")
                seen.add(value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Write YAML that `_Loader` reads back unchanged. Strings that would be read as another type are quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> Any:
        style = '"' if _BREAKS.search(text) else None  # PyYAML would change these line breaks
        return self.represent_scalar(f"{_TAG}str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _scalar(loader: _Loader, node: Any) -> Any:
    """Return the number, boolean or null of a scalar with a resolved or an explicit tag, such as `!!int 3`."""
    text, kind = loader.construct_scalar(node), node.tag.removeprefix(_TAG)
    if not re.fullmatch(_SCALARS[kind], text):
        raise _refusal(node, f"'{text}' is not of the type {kind}")
    if kind in ("null", "bool"):
        return None if kind == "null" else text.lower() == "true"
    if len(text) > _MAX_DIGITS:
        raise _refusal(node, f"a number of {len(text):,} characters is too long")
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text[2:], _BASES[text[:2]]) if text[:2] in _BASES else int(text)


def _unknown(loader: _Loader, node: Any) -> None:
    raise _refusal(node, f"the tag {node.tag.replace(_TAG, '!!')} is not supported")


def _refusal(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.yaml_implicit_resolvers = {}  # otherwise those of YAML 1.1 are inherited
for _kind, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})$"), None)
    _Dumper.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})$"), None)
    if _kind != "merge":
        _Loader.add_constructor(f"{_TAG}{_kind}", _scalar)
_Loader.add_constructor(None, _unknown)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises yaml.YAMLError, which is a MarkedYAMLError if it has a line number."""
    return yaml.load(text, _Loader)


def dump_yaml(value: Any) -> str:
    """Return a value of plain Python types as YAML that `parse_yaml` reads back unchanged, in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def quote_yaml(text: str) -> str:
    """Return a string in quotes, on one line, that `parse_yaml` reads back unchanged."""
    return str(yaml.dump(text, Dumper=_Dumper, default_style='"', allow_unicode=True, width=math.inf)).rstrip("\n")
