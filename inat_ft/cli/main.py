"""The `inat-ft` command: its subcommands, and the one place where an error becomes an exit code."""

import codecs
import copy
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inat_ft import __version__
from inat_ft.cli import commands, render
from inat_ft.cli.lazy_dynamo import defer_compiler
from inat_ft.cli.malloc import keep_memory
from inat_ft.errors import InatFtError, UsageError
from inat_ft.paths import ensure_home

_ANYWHERE = ("quiet", "debug")
"""Options that every command takes, wherever they stand."""

_debug = False


class _Terminated(KeyboardInterrupt):
    """The end that a scheduler or torchrun asks for: the same as Ctrl-C with another exit code."""


class _Commands(TyperGroup):
    """The commands, each imported when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": commands.listed()})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in commands.COMMANDS:
            command = self.commands[args[0]] = commands.load(args[0])
            for inner in (command, *getattr(command, "commands", {}).values()):
                inner.params += [_hidden(option) for option in self.params if option.name in _ANYWHERE]
                inner.callback = inner.callback and _prepared(inner.callback)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Exit(_exit_code(stop)) from stop
        except typer.BadParameter as error:
            if error.__cause__ is not None:  # Typer leaves out the value that was given
                _name_value(error)
            raise


def _prepared(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A command that first sets up what only work needs, and help and usage errors do not."""

    def call(**options: Any) -> Any:
        keep_memory()
        defer_compiler()
        return callback(**options)

    return call


def _hidden(option: Any) -> Any:
    hidden = copy.copy(option)
    hidden.hidden = True
    return hidden


def _name_value(error: typer.BadParameter) -> None:
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):
        finding = error.__cause__.errors()[0]
        said, got = finding["msg"].removeprefix("Value error, "), repr(finding["input"])
        error.message = said if got in said else f"{said[0].lower()}{said[1:]} (got {got})"


def _show_version(asked: bool) -> None:
    if asked:
        print(f"inat-ft {__version__}")
        raise typer.Exit


def _be_quiet(asked: bool) -> None:
    if asked:
        render.set_quiet(True)


def _show_tracebacks(asked: bool) -> None:
    global _debug  # noqa: PLW0603 - one command line, one setting
    _debug = _debug or asked


app = typer.Typer(
    name="inat-ft",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=commands.HELP,
)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", callback=_be_quiet, expose_value=False, help="Show results only: no progress, no remarks."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", callback=_show_tracebacks, expose_value=False, help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Fine-tune a pretrained image classifier, and learn which way is best and by how much.

    split -> train -> sweep -> eval -> compare; `inat-ft demo` runs the whole line on embedded images.
    """


def run() -> None:
    """Run the command line and exit with its code: 1 for a failure, 2 for a wrong command line, 128 + N for signal N."""
    _open_streams()
    _set_defaults()
    try:
        if not {"--help", "-h", "--version"} & set(sys.argv):
            _require_utf8()
        if (home := ensure_home()) and render.is_main_process():
            render.warn(
                f"there is no home folder: {home} is used instead; INAT_FT_CACHE_DIR names the folder of caches"
            )
        app()
    except BrokenPipeError:  # whoever reads our output has ended, as with `| head`
        _drop_output()
        sys.exit(1)
    except KeyboardInterrupt as stop:
        sys.exit(_exit_code(stop))
    except Exception as error:
        if _debug:
            _show_traceback(error)
        problem = error if isinstance(error, InatFtError) else _eta_squared(error)
        if render.is_main_process() or not isinstance(problem, UsageError):  # one process reports a wrong command line
            render.error(problem)
        sys.exit(problem.exit_code)


def _set_defaults() -> None:
    global _debug  # noqa: PLW0603 - one command line, one setting
    _debug = bool(os.environ.get("INAT_FT_DEBUG"))
    render.set_quiet(not render.is_main_process())
    signal.signal(signal.SIGTERM, _terminate)  # leave in order, and say how to resume


def _terminate(*_: object) -> None:
    raise _Terminated


def _exit_code(stop: KeyboardInterrupt) -> int:
    return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)


def _show_traceback(error: Exception) -> None:
    import traceback

    from inat_ft.crash import redact

    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _eta_squared(error: Exception) -> InatFtError:
    """What the system refused, in a sentence; anything else is a bug, of which the traceback is kept."""
    from inat_ft.crash import is_refusal, write_crash

    if isinstance(error, MemoryError):
        problem = InatFtError("out of memory", "try a smaller --batch-size, --image-size or backbone")
    elif isinstance(error, OSError) and is_refusal(error) and error.filename:
        problem = InatFtError(f"cannot use {error.filename}: {error.strerror}", "name another place, or allow access")
    elif isinstance(error, OSError) and is_refusal(error):
        _drop_output()
        problem = InatFtError(f"cannot write the output: {error.strerror}", "free some space, or write it elsewhere")
    else:
        file = write_crash(error, _cache())
        where = f" and attach {file}" if file else "; run the same command with --debug for a traceback"
        problem = InatFtError(f"{type(error).__name__}: {error}", f"this is a bug in inat-ft; please report it{where}")
    for note in getattr(error, "__notes__", ()):
        problem.add_note(note)
    return problem


def _cache() -> Any:
    from pathlib import Path

    from inat_ft.paths import cache_folder

    chosen = os.environ.get("INAT_FT_CACHE_DIR")
    return cache_folder(Path(chosen) if chosen else None)


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
    if hasattr(sys.stdout, "reconfigure"):  # a locale that is not UTF-8: names are shown with escapes, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is still to be written to stdout, also when Python ends, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
