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

    from inat_ft.tables import Table

_PLAIN_EVERY_S = 10.0
_LONG = re.compile(r"(\S{200})\S{300,}(\S{100})")
"""Words that messages abbreviate, such as a path of thousands of characters."""

_WHOLE_WORD = 12  # length up to which a word in a table is not broken, in characters
_LONG_CELL = 30  # width up to which a column of a table has a single line, in characters

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Hide progress and messages. Results, warnings and errors are still printed."""
    global _quiet  # noqa: PLW0603 - one terminal, one setting
    _quiet = quiet


def shows_bars() -> bool:
    return not _quiet and sys.stderr.isatty()


def console(stderr: bool = False) -> "Console":
    """Return a rich console. Without a terminal it has no colors and, unless COLUMNS is set, 160 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if known else 160)


def width() -> int:
    """Return the number of columns of stdout."""
    return console().width


def info(text: str) -> None:
    if not _quiet:
        print(_safe(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    print(f"warning: {_safe(text)}", file=sys.stderr, flush=True)


def echo(text: str) -> None:
    print(_safe(text), flush=True)


def _safe(text: str) -> str:
    """Escape control characters, which file names can contain."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


def echo_json(value: Any) -> None:
    """Print a result as JSON to stdout. NaN and infinity, which JSON does not have, become null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False), flush=True)


def emit(as_json: bool, value: Any, show: Callable[[], object]) -> None:
    """Print a result as JSON, or call `show`."""
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
    lines = _LONG.sub(r"\1...\2", _safe(problem.message)).splitlines()
    who = "inat-ft" if is_main_process() else f"inat-ft (process {os.environ['RANK']})"
    print(f"{who}: {lines[0]}", *lines[1:], sep="\n  ", file=sys.stderr)
    for text in (problem.hint, *getattr(problem, "__notes__", ())):
        for line in _LONG.sub(r"\1...\2", _safe(text)).splitlines():
            print(f"  {line}", file=sys.stderr)


def table(table: "Table", drop: Sequence[str] = ()) -> None:
    """Print a table to stdout, without interpreting markup in its texts.

    drop: columns that a narrow terminal omits, the least important first.
    """
    from rich import box
    from rich import table as rich_table
    from rich.cells import cell_len
    from rich.text import Text

    terminal, cells = console(), table.cells()
    texts = dict(zip(table.names, zip([_safe(name) for name in table.names], *cells, strict=True), strict=True))
    for name in drop:
        if sum(min(max(map(cell_len, column)), _LONG_CELL) + 3 for column in texts.values()) > terminal.width:
            del texts[name]
    drawn = rich_table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, side in zip(table.names, table.alignments(), strict=True):
        if name in texts:
            longest = max((len(word) for text in texts[name][1:] for word in text.split()), default=0)
            header, width = Text(texts[name][0]), min(longest, _WHOLE_WORD)
            drawn.add_column(header, justify="right" if side == "right" else "left", overflow="fold", min_width=width)
    for row in list(zip(*texts.values(), strict=True))[1:]:
        drawn.add_row(*map(Text, row))
    terminal.print(Text(_safe(table.title or ""), "table.title"), end="\n" * bool(table.title))
    terminal.print(drawn)
    if omitted := [name for name in table.names if name not in texts]:
        info(f"columns omitted because the terminal is narrow: {', '.join(omitted)}")


@contextmanager
def progress(what: str, unit: str = "images") -> Iterator[ProgressFn]:
    """Show a progress bar with rate and remaining time on a terminal, and print lines otherwise. Nothing if quiet."""
    if shows_bars():
        with open_bar(what, unit) as update:
            yield update
    else:
        yield ignore_progress if _quiet else _plain_lines(what, unit)


@contextmanager
def open_bar(what: str, unit: str = "images", transient: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yield a function of (done, total, text="") that updates it."""
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=24),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[text]}{task.fields[rate]}"),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    start = time.monotonic()
    with bars.Progress(*columns, console=console(stderr=True), transient=transient) as bar:
        task = bar.add_task(_safe(what), total=None, text="", rate="")

        def update(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text, rate=_rate(done, start, f" {unit}"))

        yield update


def _plain_lines(what: str, unit: str) -> ProgressFn:
    start = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY_S or (done == total and now - start > 1):
            last = now
            info(f"{what}: {done:,} of {total:,} {unit}, {_rate(done, start)}")

    return update


def _rate(done: int, start: float, unit: str = "") -> str:
    rate = done / max(time.monotonic() - start, 1e-6)
    return f"{rate:,.{0 if rate >= 10 else 1}f}{unit}/s"
