"""A small table that prints as text, shows as HTML in a notebook, and is a sequence of rows for a program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, overload

from inat_ft.text import escape_unprintable


@dataclass(frozen=True)
class Column:
    """A column: its header, how a value is formatted, and its alignment.

    format: a format specification such as `.4f`, or a function from a value to text. `None` is an empty cell.
    """

    name: str
    format: str | Callable[[Any], str] = ""
    right: bool = False

    def text(self, value: Any) -> str:
        """Return a value as the text of a cell."""
        if value is None:
            return ""
        shown = format(value, self.format) if isinstance(self.format, str) else self.format(value)
        return escape_unprintable(shown)


class Table(Sequence[Mapping[str, Any]]):
    """A sequence of rows, each a mapping from column names to values.

    `pandas.DataFrame(table)` makes a data frame of it; `print(table)` prints it.
    """

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        self.columns = tuple(columns)
        self.rows = [tuple(row) for row in rows]
        self.title = title

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return dict(zip(self.names, self.rows[place], strict=True))

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    def cells(self) -> list[list[str]]:
        """Return the formatted text of each cell, row by row."""
        return [[column.text(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def __str__(self) -> str:
        lines = [[escape_unprintable(name) for name in self.names], *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = [
            "  ".join(
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*([self.title] if self.title else []), *shown])

    def __repr__(self) -> str:
        return f"<Table of {len(self)} rows: {', '.join(self.names)}>"

    def _repr_html_(self) -> str:
        def row(tag: str, texts: Sequence[str]) -> str:
            return (
                "<tr>"
                + "".join(
                    f'<{tag} style="text-align: {"right" if column.right else "left"}">{escape(text)}</{tag}>'
                    for column, text in zip(self.columns, texts, strict=True)
                )
                + "</tr>"
            )

        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        body = "".join(row("td", texts) for texts in self.cells())
        return f"<table>{caption}<thead>{row('th', self.names)}</thead><tbody>{body}</tbody></table>"
