"""The `inat-ft` command: its subcommands, and the one place where an error becomes an exit code."""

import codecs
import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inat_ft import __version__
from inat_ft.cli import commands, render
from inat_ft.cli.deferred import defer_compiler
from inat_ft.cli.memory import keep_memory
from inat_ft.errors import InatFtError, UsageError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


class _Commands(TyperGroup):
    """Commands whose errors show the value that was given, which Typer leaves out."""

    def invoke(self, ctx: Any) -> Any:
        from pydantic import ValidationError

        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                finding = error.__cause__.errors()[0]
                said, got = finding["msg"].removeprefix("Value error, "), repr(finding["input"])
                error.message = said if got in said else f"{said[0].lower()}{said[1:]} (got {got})"
            raise


app = typer.Typer(
    name="inat-ft",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands.add_to(app)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"inat-ft {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only: no progress, no remarks.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Fine-tune a pretrained image classifier, and learn which way is best and by how much.

    split -> train -> sweep -> eval -> compare; `inat-ft demo` runs the whole line on embedded images.
    """


def run() -> None:
    """Run the command line; `--quiet` and `--debug` may stand anywhere in it."""
    _open_streams()
    debug = "--debug" in sys.argv or bool(os.environ.get("INAT_FT_DEBUG"))
    render.set_quiet(bool({"--quiet", "-q"} & set(sys.argv)) or not render.is_first())
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in ("--debug", "--quiet", "-q")]
    keep_memory()
    defer_compiler()
    try:
        if not {"--help", "-h", "--version"} & set(sys.argv):
            _require_utf8()
        app()
    except InatFtError as error:
        if debug:
            raise
        if render.is_first() or not isinstance(error, UsageError):  # of a wrong command line one process tells
            render.error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        _drop_output()
        sys.exit(1)
    except MemoryError:
        if debug:
            raise
        render.error(short := InatFtError("out of memory", "try a smaller --batch-size, --image-size or backbone"))
        sys.exit(short.exit_code)
    except Exception as error:
        if debug:
            raise
        problem = _explained(error)
        render.error(problem)
        sys.exit(problem.exit_code)


def _explained(error: Exception) -> InatFtError:
    """What the system refused, in a sentence; anything else is our fault."""
    from inat_ft.records import is_full

    if isinstance(error, OSError) and error.filename is None and is_full(error):
        _drop_output()
        return InatFtError(f"cannot write the output: {error.strerror}", "free some space, or send it elsewhere")
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return InatFtError(f"cannot use {error.filename}: {error.strerror}", "name another place, or have it allowed")
    return InatFtError(
        f"{type(error).__name__}: {error}", "this is a fault of inat-ft; `inat-ft --debug ...` shows where"
    )


def _require_utf8() -> None:
    """Refuse to read names of files in another encoding: those with other characters would be lost half-way."""
    encoding = sys.getfilesystemencoding()
    if codecs.lookup(encoding).name != "utf-8":
        raise UsageError(
            f"file names are read as {encoding} under this locale, not as UTF-8",
            "set PYTHONUTF8=1, or a locale with UTF-8: export LC_ALL=C.UTF-8",
        )


def _open_streams() -> None:
    """Standard streams that are closed lead nowhere: the file that is opened next would take their place."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w" if name != "stdin" else "r", encoding="utf-8")  # noqa: SIM115 - to the end
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of what its encoding lacks, as on stderr


def _drop_output() -> None:
    """What is still to be written to stdout, also when Python ends, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
