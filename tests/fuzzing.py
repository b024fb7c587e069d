"""Damaged and hostile files, made from valid ones, and the check that a reader refuses or reads them."""

import copy
import io
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from inat_ft.errors import InatFtError
from inat_ft.yaml_io import dump_yaml

HANGS_S = 60.0
"""Time of the processor after which a reader of one small file is considered to hang."""
TOKENS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\n",
        "\t",
        "\r",
        '"',
        "'",
        "#",
        "-",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!!map ",
        "---\n",
    ),
    *(
        "null",
        "true",
        "NaN",
        "Infinity",
        ".nan",
        ".inf",
        "-1",
        "0",
        "1e999",
        "9" * 400,
        "9" * 5000,
        "0x_",
        "~",
        "%",
        "@",
    ),
    *(
        "../",
        "/etc/passwd",
        "\0",
        "\x1b[31m",
        "\ufeff",
        "\u202e",
        "\ud800",
        "p_",
        "epoch",
        "value",
        "values",
        "min",
        "max",
    ),
    *("[" * 2000, "{a: " * 500, "x" * 140_000, "[b]", "=1+1", "a - b"),
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 10**18, 10**400, -(10**18)]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "NaN", "../x", "~nosuchuser/x", "a\0b", "x" * 300, "resnet18", "head", "lr", "1e-3"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner), max_leaves=5
)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Return a valid file after some edits: parts are removed, replaced, repeated, moved or inserted."""
    content = valid
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 1, 2, 8, 64, 4096])))
        token = draw(st.sampled_from(TOKENS) | st.text(max_size=4)).encode("utf-8", "surrogatepass")
        part = draw(
            st.sampled_from([b"", token, content[start:end] * 2, draw(st.binary(max_size=4)), b"\0" * (end - start)])
        )
        content = content[:start] + part + content[end:]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@st.composite
def altered(draw: st.DrawFn, valid: Any) -> Any:
    """Return a tree of mappings and lists in which some values are replaced, removed or added."""
    tree = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        here = tree
        while True:
            if isinstance(here, dict) and here:
                key: Any = draw(st.sampled_from(sorted(here, key=str)))
            elif isinstance(here, list) and here:
                key = draw(st.integers(0, len(here) - 1))
            else:
                break
            if isinstance(here[key], dict | list) and here[key] and draw(st.integers(0, 3)):
                here = here[key]
                continue
            change = draw(st.integers(0, 5))
            if change == 0:
                del here[key]
            elif change == 1 and isinstance(here, dict):
                here[draw(st.text(max_size=6))] = draw(VALUES)
            else:
                here[key] = draw(VALUES)
            break
    return tree


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def as_yaml(value: Any) -> bytes:
    with suppress(Exception):  # PyYAML cannot write every text
        return dump_yaml(value).encode()
    return as_json(value)


def as_torch(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


@dataclass
class Target:
    """A reader, a file that it accepts, and the file's content as a tree, if it has one."""

    name: str
    read: Callable[[Path], object]
    valid: bytes
    tree: Any = None
    write: Callable[[Any], bytes] = as_json

    def inputs(self) -> st.SearchStrategy[bytes]:
        """Return the strategy for contents of the file."""
        found = damaged(self.valid)
        return found if self.tree is None else found | altered(self.tree).map(self.write)


def check(target: Target, content: bytes) -> None:
    """Pass content to a reader. Any exception that is not an InatFtError, and a reader that hangs, fail the test."""
    file = Path("input")
    file.write_bytes(content)
    start = time.process_time()
    try:
        target.read(file)
    except InatFtError as error:
        assert error.message.strip()
    assert time.process_time() - start < HANGS_S, content[:200]
