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

from inat_ft.data.wording import printable
from inat_ft.errors import InatFtError

if TYPE_CHECKING:
    from rich.console import Console

Tick = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

_PLAIN_EVERY_S = 10.0
_LONG = re.compile(r"(\S{200})\S{300,}(\S{100})")
"""What no message shows whole, such as a path of thousands of characters."""

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and remarks; results and errors still show."""
    global _quiet  # noqa: PLW0603 - one terminal, one setting
    _quiet = quiet


def is_quiet() -> bool:
    """Whether only results are wanted."""
    return _quiet


def console(stderr: bool = False) -> "Console":
    """A rich console; without a terminal it neither colours nor folds lines at 80 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else 160)


def remark(text: str) -> None:
    """A line for a person, on stderr."""
    if not _quiet:
        print(_shown(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning, on stderr, in quiet mode too."""
    print(f"warning: {_shown(text)}", file=sys.stderr, flush=True)


def result(text: str) -> None:
    """A line of the result, on stdout."""
    print(_shown(text), flush=True)


def _shown(text: str) -> str:
    """Text for a terminal, which would obey the control characters that a file's name may hold."""
    return "\n".join(map(printable, text.split("\n")))


def as_json(value: Any) -> None:
    """Print the result for a script: JSON alone on stdout. JSON has no NaN and no infinity: they become null."""
    finite = _finite(value)
    text = json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the terminal has another encoding, or a name is not UTF-8
        text = json.dumps(finite, indent=2, allow_nan=False)
    print(text, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_first() -> bool:
    """Whether this is the one of several processes, started by torchrun, that prints results."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def error(problem: InatFtError) -> None:
    """What was wrong and what to do next, on stderr."""
    lines = _LONG.sub(r"\1...\2", _shown(problem.message)).splitlines()
    who = "inat-ft" if is_first() else f"inat-ft (process {os.environ['RANK']})"
    print(f"{who}: {lines[0]}", *lines[1:], sep="\n  ", file=sys.stderr)
    for line in (*_LONG.sub(r"\1...\2", _shown(problem.hint)).splitlines(), *getattr(problem, "__notes__", ())):
        print(f"  {line}", file=sys.stderr)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table on stdout; the columns named in `right` are aligned to the right. Cells are shown as they are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        drawn.add_row(*(Text(_shown(str(cell))) for cell in row))
    console().print(drawn)


@contextmanager
def progress(what: str, unit: str = "images") -> Iterator[Tick]:
    """A progress bar with rate and time left on a terminal, plain lines elsewhere, nothing when quiet."""
    if _quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(what, unit) as tick:
            yield tick
    else:
        yield _plain_lines(what, unit)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Tick]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, rate="")

        def tick(done: int, total: int) -> None:
            rate = f"{done / max(time.monotonic() - start, 1e-6):,.0f} {unit}/s"
            bar.update(task, completed=done, total=total, rate=rate)

        yield tick


def _plain_lines(what: str, unit: str) -> Tick:
    start = last = time.monotonic()

    def tick(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY_S or (done == total and now - start > 1):
            last = now
            remark(f"{what}: {done:,} of {total:,} {unit}, {done / max(now - start, 1e-6):,.0f}/s")

    return tick
