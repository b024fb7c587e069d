"""Read and write YAML with the core schema of YAML 1.2.

PyYAML implements YAML 1.1, where `064` is 52, `12:30:45` is 45045 and `no` is false. In the core schema of YAML 1.2 they are
the number 64 and two strings. The loader also rejects duplicate keys and aliases that expand to very large documents.
"""

import math
import re
from typing import Any, ClassVar

import yaml

_MAX_NODES = 100_000
"""Values in a document, including each use of an alias."""
_MAX_DEPTH = 50
_MAX_DIGITS = 1000
"""Characters of a number."""
_BREAKS = re.compile("[\\r\\x85\\u2028\\u2029]")
_TAG = "tag:yaml.org,2002:"
_BASES = {"0o": 8, "0x": 16}
_SCALARS = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    "float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        list("-+.0123456789"),
    ),
    "merge": (re.compile(r"<<"), ["<"]),
}
"""The types of unquoted scalars other than strings: a pattern, and the first characters."""


class _Loader(yaml.SafeLoader):
    """Read YAML 1.2. Raises yaml.MarkedYAMLError for unsupported input."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in ("str", "seq", "map")
    }

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _refusal(self.peek_event(), f"it is nested more than {_MAX_DEPTH} levels deep")  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
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
        """Use double quotes for line breaks that PyYAML would otherwise change."""
        style = '"' if _BREAKS.search(text) else None
        return self.represent_scalar(f"{_TAG}str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _scalar(loader: _Loader, node: Any) -> Any:
    """Return the number, boolean or null of a scalar with a resolved or an explicit tag, such as `!!int 3`."""
    text, kind = loader.construct_scalar(node), node.tag.removeprefix(_TAG)
    if not _SCALARS[kind][0].fullmatch(text):
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


def _count(node: Any, sizes: dict[int, int]) -> int:
    """Return the number of values in a node with its aliases expanded. Raises MarkedYAMLError above the limit."""
    key = id(node)
    if key in sizes:
        if not sizes[key]:
            raise _refusal(node, "an alias refers to the value that contains it")
        return sizes[key]
    sizes[key] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
    total = 1 + sum(_count(part, sizes) for part in parts)
    if total > _MAX_NODES:
        raise _refusal(node, f"its aliases expand to more than {_MAX_NODES:,} values")
    sizes[key] = total
    return total


_Loader.yaml_implicit_resolvers = {}  # otherwise those of YAML 1.1 are inherited
for _kind, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern.pattern})$"), _first)
for _kind in ("null", "bool", "int", "float"):
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
