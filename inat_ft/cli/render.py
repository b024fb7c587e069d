"""How things look in a terminal: the home of rich. Results go to stdout, everything else to stderr."""

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
"""What no message shows whole, such as a path of thousands of characters."""

_WHOLE_WORD = 12
"""Characters up to which a word in a table's cell is not broken."""
_LONG_CELL = 30
"""Width from which a table's column may as well have several lines."""

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and remarks; results and errors still show."""
    global _quiet  # noqa: PLW0603 - one terminal, one setting
    _quiet = quiet


def is_quiet() -> bool:
    """Whether only results are wanted."""
    return _quiet


def console(stderr: bool = False) -> "Console":
    """A rich console; without a terminal it has no colours, and 160 columns unless COLUMNS says otherwise."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if known else 160)


def info(text: str) -> None:
    """A line for a person, on stderr."""
    if not _quiet:
        print(_safe(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning, on stderr, in quiet mode too."""
    print(f"warning: {_safe(text)}", file=sys.stderr, flush=True)


def echo(text: str) -> None:
    """A line of the result, on stdout."""
    print(_safe(text), flush=True)


def _safe(text: str) -> str:
    """Text for a terminal, which would obey the control characters that a file's name may hold."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


def echo_json(value: Any) -> None:
    """Print the result for a script: JSON alone on stdout. JSON has no NaN and no infinity: they become null."""
    finite = _finite(value)
    text = json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the terminal has another encoding, or a name is not UTF-8
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
    """Whether this is the one of several processes, started by torchrun, that prints results."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def error(problem: InatFtError) -> None:
    """What was wrong and what to do next, on stderr."""
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
    """A table on stdout; titles, headers and cells are shown as they are, without markup.

    right: columns aligned to the right; drop: columns that a narrow terminal leaves out, the least important first.
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
        info(f"not shown, since the terminal is narrow: {', '.join(left)}")


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], drop: Sequence[int], width: int) -> list[int]:
    """The columns that fit into a width, after leaving out those of `drop`, one after the other, as long as they do not."""
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
    """A progress bar with rate and time left on a terminal, plain lines elsewhere, nothing when quiet."""
    if _quiet:
        yield ignore_progress
    elif sys.stderr.isatty():
        with _bar(what, unit) as update:
            yield update
    else:
        yield _plain_lines(what, unit)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[ProgressFn]:
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
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(_safe(what), total=None, rate="")

        def update(done: int, total: int) -> None:
            rate = f"{done / max(time.monotonic() - start, 1e-6):,.0f} {unit}/s"
            bar.update(task, completed=done, total=total, rate=rate)

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
