"""Numbers, sizes and names as a sentence has them."""

import re
from collections.abc import Sequence

_SHOWN = 5
_REORDERING = re.compile("[\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Line breaks and the embeddings, overrides and isolates of bidirectional text; right-to-left letters are as they are."""


def pluralize(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_bytes(num_bytes: float) -> str:
    """A size with the unit that suits it: `12.0 KiB`, `3.5 GiB`."""
    unit, least = next(((u, n) for u, n in (("GiB", 2**30), ("MiB", 2**20)) if num_bytes >= n), ("KiB", 2**10))
    return f"{num_bytes / least:,.1f} {unit}"


def is_printable(name: str) -> bool:
    """Whether a name is UTF-8 without control characters, which would garble terminals and lists."""
    return name.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in name)


def few(names: Sequence[str]) -> str:
    """The first five names, as they can be printed, and whether there are more."""
    return ", ".join(map(escape_unprintable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def escape_unprintable(name: str) -> str:
    """A name with what cannot be printed, or would change the order of what is printed, written as escapes."""
    if is_printable(name) and not _REORDERING.search(name):
        return name
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if is_printable(c) and not _REORDERING.match(c) else _escaped(c) for c in shown)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
