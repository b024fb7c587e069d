"""Numbers, sizes and names in messages."""

import re
from collections.abc import Sequence

_SHOWN = 5
_REORDERING = re.compile("[\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Line separators, and characters that change the direction of text. Right-to-left letters are not among them."""
_FORMULA = re.compile("'*[=+@\t\r\n＝＋－＠-]")
"""The start of a cell that a spreadsheet takes for a formula, or of one that `csv_cell` returns."""


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: `1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_bytes(num_bytes: float) -> str:
    """Return a size in KiB, MiB or GiB: `12.0 KiB`, `3.5 GiB`."""
    unit, least = next(((u, n) for u, n in (("GiB", 2**30), ("MiB", 2**20)) if num_bytes >= n), ("KiB", 2**10))
    return f"{num_bytes / least:,.1f} {unit}"


def is_printable(name: str) -> bool:
    """Return whether a name is valid UTF-8 without control characters."""
    return name.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in name)


def few(names: Sequence[str]) -> str:
    """Return the first five names, and `...` if there are more."""
    return ", ".join(map(escape_unprintable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def csv_cell(text: str) -> str:
    """Return the cell of a CSV file: text that a spreadsheet takes for a formula gets an apostrophe before it."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv_cell(cell: str) -> str:
    """Return the text that `csv_cell` made a cell of."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def escape_unprintable(name: str) -> str:
    """Escape characters that cannot be printed or that change the direction of text."""
    if is_printable(name) and not _REORDERING.search(name):
        return name
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if is_printable(c) and not _REORDERING.match(c) else _escaped(c) for c in shown)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
