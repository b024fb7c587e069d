"""Terminal output. Results go to stdout, everything else to stderr. Only this module and its users import rich."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from inat_ft.errors import InatFtError
from inat_ft.progress import ProgressFn, ignore_progress
from inat_ft.text import escape_unprintable

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_EVERY_S = 10.0
_LONG = re.compile(r"(\S{200})\S{300,}(\S{100})")
"""Words that messages abbreviate, such as a path of thousands of characters."""

_WHOLE_WORD = 12
"""Length up to which a word in a table is not broken, in characters."""
_LONG_CELL = 30
"""Width up to which a column of a table has a single line, in characters."""

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Hide progress and messages. Results, warnings and errors are still printed."""
    global _quiet  # noqa: PLW0603 - one terminal, one setting
    _quiet = quiet


def is_quiet() -> bool:
    """Return whether progress and messages are hidden."""
    return _quiet


def console(stderr: bool = False) -> "Console":
    """Return a rich console. Without a terminal it has no colors and, unless COLUMNS is set, 160 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if known else 160)


def info(text: str) -> None:
    """Print a message to stderr, unless quiet."""
    if not _quiet:
        print(_safe(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {_safe(text)}", file=sys.stderr, flush=True)


def echo(text: str) -> None:
    """Print a line of the result to stdout."""
    print(_safe(text), flush=True)


def _safe(text: str) -> str:
    """Escape control characters, which file names can contain."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


def echo_json(value: Any) -> None:
    """Print a result as JSON to stdout. NaN and infinity, which JSON does not have, become null."""
    finite = _finite(value)
    text = json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the encoding of stdout is not UTF-8, or a file name is not
        text = json.dumps(finite, indent=2, allow_nan=False)
    print(text, flush=True)


def emit(as_json: bool, value: Any, show: Callable[[], object]) -> None:
    """Print a result as JSON, or for a person by calling `show`."""
    if as_json:
        echo_json(value)
    else:
        show()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_main_process() -> bool:
    """Return whether this process prints results. Of several processes under torchrun, it is rank 0."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def error(problem: InatFtError) -> None:
    """Print an error and its hint to stderr."""
    lines = _LONG.sub(r"\1...\2", _safe(problem.message)).splitlines()
    who = "inat-ft" if is_main_process() else f"inat-ft (process {os.environ['RANK']})"
    print(f"{who}: {lines[0]}", *lines[1:], sep="\n  ", file=sys.stderr)
    for text in (problem.hint, *getattr(problem, "__notes__", ())):
        for line in _LONG.sub(r"\1...\2", _safe(text)).splitlines():
            print(f"  {line}", file=sys.stderr)


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> None:
    """Print a table to stdout, without interpreting markup in its texts.

    right: columns aligned to the right; drop: columns that a narrow terminal omits, the least important first.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    terminal, cells = console(), [[_safe(str(cell)) for cell in row] for row in rows]
    kept = _fitting(
        [_safe(column) for column in columns], cells, [columns.index(name) for name in drop], terminal.width
    )
    drawn = Table(
        title=Text(_safe(title)) if title else None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
    )
    for place in kept:
        words = [word for row in cells for word in row[place].split()]
        drawn.add_column(
            Text(_safe(columns[place])),
            justify="right" if columns[place] in right else "left",
            overflow="fold",
            min_width=min(max(map(len, words), default=0), _WHOLE_WORD),
        )
    for row in cells:
        drawn.add_row(*(Text(row[place]) for place in kept))
    terminal.print(drawn)
    if left := [columns[place] for place in range(len(columns)) if place not in kept]:
        info(f"columns omitted because the terminal is narrow: {', '.join(left)}")


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], drop: Sequence[int], width: int) -> list[int]:
    """Return the columns to show. Columns of `drop` are removed in turn until the rest fits into the width."""
    from rich.cells import cell_len

    wanted = [
        min(max(cell_len(text) for text in (column, *(row[place] for row in rows))), _LONG_CELL) + 3
        for place, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    for place in drop:
        if sum(wanted[each] for each in kept) <= width:
            break
        kept.remove(place)
    return kept


@contextmanager
def progress(what: str, unit: str = "images") -> Iterator[ProgressFn]:
    """Show a progress bar with rate and remaining time on a terminal, and print lines otherwise. Nothing if quiet."""
    if _quiet:
        yield ignore_progress
    elif sys.stderr.isatty():
        with open_bar(what, unit) as update:
            yield update
    else:
        yield _plain_lines(what, unit)


@contextmanager
def open_bar(what: str, unit: str = "images", transient: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yield a function of (done, total, text="") that updates it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=console(stderr=True), transient=transient) as bar:
        task = bar.add_task(_safe(what), total=None, text="", rate="")

        def update(done: int, total: int, text: str = "") -> None:
            rate = f"{done / max(time.monotonic() - start, 1e-6):,.0f} {unit}/s"
            bar.update(task, completed=done, total=total, text=text, rate=rate)

        yield update


def _plain_lines(what: str, unit: str) -> ProgressFn:
    start = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY_S or (done == total and now - start > 1):
            last = now
            info(f"{what}: {done:,} of {total:,} {unit}, {done / max(now - start, 1e-6):,.0f}/s")

    return update
