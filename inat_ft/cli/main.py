"""The `inat-ft` command: subcommands, options of every command, and exit codes."""

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

_GLOBAL = ("quiet", "debug")
"""Options that can stand before and after the name of a command."""

_debug = False


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers and torchrun send. It is handled as Ctrl-C, with another exit code."""


class _Commands(TyperGroup):
    """The subcommands. Each is imported when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": commands.listed()})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in commands.COMMANDS:
            command = self.commands[args[0]] = commands.load(args[0])
            for inner in (command, *getattr(command, "commands", {}).values()):
                inner.params += [_hidden(option) for option in self.params if option.name in _GLOBAL]
                inner.callback = inner.callback and _prepared(inner.callback)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Exit(_exit_code(stop)) from stop
        except typer.BadParameter as error:
            if error.__cause__ is not None:  # Typer omits the value
                _name_value(error)
            raise


def _prepared(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command to set up the process first. Help and usage errors do not need that."""

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
        message, value = finding["msg"].removeprefix("Value error, "), repr(finding["input"])
        error.message = message if value in message else f"{message[0].lower()}{message[1:]} (got {value})"


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
            "--quiet", "-q", callback=_be_quiet, expose_value=False, help="Print results, warnings and errors only."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", callback=_show_tracebacks, expose_value=False, help="Print the traceback of an error."),
    ] = False,
) -> None:
    """Fine-tune pretrained image classifiers and compare them with significance tests.

    Typical order: split, train, eval, compare. To see all of them on embedded images, run `inat-ft demo`.
    """


def run() -> None:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for a usage error, 128 + N for signal N."""
    _open_streams()
    _set_defaults()
    try:
        if not {"--help", "-h", "--version"} & set(sys.argv):
            _require_utf8()
        if (home := ensure_home()) and render.is_main_process():
            render.warn(
                f"there is no home folder, so {home} is used; to choose the cache folder, set INAT_FT_CACHE_DIR"
            )
        app()
    except BrokenPipeError:  # as with `| head`
        _drop_output()
        sys.exit(1)
    except KeyboardInterrupt as stop:
        sys.exit(_exit_code(stop))
    except Exception as error:  # the outermost frame: any other error becomes one sentence and a crash file
        if _debug:
            _show_traceback(error)
        problem = error if isinstance(error, InatFtError) else _to_inat_ft_error(error)
        if render.is_main_process() or not isinstance(problem, UsageError):
            render.error(problem)
        sys.exit(problem.exit_code)


def _set_defaults() -> None:
    global _debug  # noqa: PLW0603 - one command line, one setting
    _debug = bool(os.environ.get("INAT_FT_DEBUG"))
    render.set_quiet(not render.is_main_process())
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    raise _Terminated


def _exit_code(stop: KeyboardInterrupt) -> int:
    return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)


def _show_traceback(error: Exception) -> None:
    import traceback

    from inat_ft.crash import redact

    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _to_inat_ft_error(error: Exception) -> InatFtError:
    """Describe a refusal of the operating system. Any other exception is a bug, and its traceback is written to a file."""
    from inat_ft.api.config import cache_directory
    from inat_ft.crash import is_refusal, write_crash

    if isinstance(error, MemoryError):
        problem = InatFtError("out of memory", "try a smaller --batch-size, --image-size or backbone")
    elif isinstance(error, OSError) and is_refusal(error) and error.filename:
        problem = InatFtError(
            f"cannot use {error.filename}: {error.strerror}", "choose another path, or change its permissions"
        )
    elif isinstance(error, OSError) and is_refusal(error):
        _drop_output()
        problem = InatFtError(
            f"cannot write the output: {error.strerror}", "free some space, or redirect the output elsewhere"
        )
    else:
        file = write_crash(error, cache_directory(None))
        where = f" and attach {file}" if file else "; run the same command with --debug for a traceback"
        problem = InatFtError(f"{type(error).__name__}: {error}", f"this is a bug in inat-ft; please report it{where}")
    for note in getattr(error, "__notes__", ()):
        problem.add_note(note)
    return problem


def _require_utf8() -> None:
    """Refuse a locale in which file names are not UTF-8, since some names could not be read."""
    encoding = sys.getfilesystemencoding()
    if codecs.lookup(encoding).name != "utf-8":
        raise UsageError(
            f"file names are read as {encoding} under this locale, not as UTF-8",
            "set PYTHONUTF8=1, or a UTF-8 locale: export LC_ALL=C.UTF-8",
        )


def _open_streams() -> None:
    """Redirect closed standard streams to the null device, so that the next opened file does not take their place."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w" if name != "stdin" else "r", encoding="utf-8")  # noqa: SIM115 - to the end
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)
    if hasattr(sys.stdout, "reconfigure"):  # escape characters that the encoding lacks, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Discard further output to stdout, including what Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
