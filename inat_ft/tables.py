"""A small table that prints as text, shows as HTML in a notebook, and is a list of rows for a program."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from inat_ft.text import escape_unprintable

Format = str | Callable[[Any], str]
Columns = Mapping[str, Format] | Iterable[str]


class Table(list[dict[str, Any]]):
    """A list of rows, each a mapping from column names to values.

    `pandas.DataFrame(table)` makes a data frame of it; `print(table)` prints it.

    columns: the names, or the format of each column by its name: a format specification, which aligns the column to the
    right, or a function from a value to text. An empty format is `str`. The text of `None` is empty.
    """

    def __init__(self, columns: Columns, rows: Iterable[Sequence[Any]], title: str = "") -> None:
        self.columns = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, "")
        self.title = title
        super().__init__(dict(zip(self.columns, row, strict=True)) for row in rows)

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    def cells(self) -> list[list[str]]:
        return [[_text(row[name], how) for name, how in self.columns.items()] for row in self]

    def alignments(self) -> list[str]:
        return ["right" if isinstance(how, str) and how else "left" for how in self.columns.values()]

    def __str__(self) -> str:
        lines = [[escape_unprintable(name) for name in self.columns], *self.cells()]
        padded = []
        for column, side in zip(zip(*lines, strict=True), self.alignments(), strict=True):
            width = max(map(len, column))
            padded.append([text.rjust(width) if side == "right" else text.ljust(width) for text in column])
        shown = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
        return "\n".join([*([escape_unprintable(self.title)] if self.title else []), *shown])

    def __repr__(self) -> str:
        return f"<Table of {len(self)} rows: {', '.join(self.columns)}>"

    def _repr_html_(self) -> str:
        def row(tag: str, texts: Sequence[str]) -> str:
            cells = zip(self.alignments(), texts, strict=True)
            inner = (f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>' for side, text in cells)
            return f"<tr>{''.join(inner)}</tr>"

        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        body = "".join(row("td", texts) for texts in self.cells())
        return f"<table>{caption}<thead>{row('th', self.names)}</thead><tbody>{body}</tbody></table>"


def _text(value: Any, how: Format) -> str:
    if value is None:
        return ""
    return escape_unprintable(format(value, how) if isinstance(how, str) else how(value))


class Tabular:
    """A result that prints as its table, and shows it in a notebook."""

    @property
    def table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
