"""The `inat-ft` command: subcommands, options of every command, and exit codes."""

import codecs
import copy
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inat_ft import __version__
from inat_ft.cli import commands, render
from inat_ft.errors import InatFtError, PluginError, UsageError
from inat_ft.paths import ensure_home

_GLOBAL = ("quiet", "debug")  # options that can stand before and after the name of a command
_OUT_OF_MEMORY = ("annot allocate memory", "can't allocate memory", "can't start new thread", "failed to map segment")
"""Parts of other messages that mean that memory has run out."""

_debug = False
_stopped_by = 0
"""Number of the first signal that asked this process to stop."""
_discarded = False
"""Whether its KeyboardInterrupt was lost, and it will be sent again."""


class _Commands(TyperGroup):
    """The subcommands. Each is imported when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": commands.builtin()})

    def main(self, *args: Any, **settings: Any) -> Any:
        try:
            return super().main(*args, **settings)
        except SystemExit as end:
            if end.code == 128 + signal.SIGINT and _stopped_by:  # Typer's exit code for any KeyboardInterrupt
                sys.exit(128 + _stopped_by)
            raise

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        self.commands = commands.listed()
        return super().list_commands(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and (command := commands.load(args[0])):
            self.commands[args[0]] = command
            for inner in (command, *getattr(command, "commands", {}).values()):
                inner.params += [copy.copy(option) for option in self.params if option.name in _GLOBAL]
                for option in _without_types(inner.get_params(ctx)):
                    option.hidden |= option.name in _GLOBAL
                inner.help = commands.WRAPPED.sub(" ", inner.help or "")
                known = {name for option in inner.params for name in option.opts}
                inner.callback = inner.callback and partial(_call, inner.callback, known)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            cause: Any = error.__cause__
            if hasattr(cause, "errors"):  # an error of pydantic, whose value Typer omits
                finding = cause.errors()[0]
                message, value = finding["msg"].removeprefix("Value error, "), repr(finding["input"])
                error.message = message if value in message else f"{message[0].lower()}{message[1:]} (got {value})"
            raise


def _without_types(options: list[Any]) -> list[Any]:
    """Remove the `<bool>` that Typer shows after flags."""
    for option in options:
        if getattr(option, "is_flag", False):
            option.metavar = ""
    return options


def _call(command: Callable[..., Any], known: set[str], /, **options: Any) -> Any:
    """Set up the process and run a command. Help and usage errors do not need that. known: its options."""
    from inat_ft.hints import name_settings
    from inat_ft.registry import FEATURES, get

    get(FEATURES, "startup").load()()
    try:
        return command(**options)
    except InatFtError as error:
        if isinstance(error, PluginError) and error.__cause__:
            error.hint = f"{error.hint}\nfor a traceback, run the command again with --debug".lstrip()
        name_settings(error, known)
        raise


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
    global _debug, _stopped_by, _discarded
    _debug, _stopped_by, _discarded = bool(os.environ.get("INAT_FT_DEBUG")), 0, False
    _open_streams()
    render.set_quiet(not render.is_main_process())
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    sys.unraisablehook = _repeat
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
    except Exception as error:  # the outermost frame: any other error becomes one sentence and a crash file
        if _stopped_by:  # some libraries replace the KeyboardInterrupt
            sys.exit(128 + _stopped_by)
        if _debug:
            import traceback

            from inat_ft.crash import redact

            print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        problem = error if isinstance(error, InatFtError) else _to_inat_ft_error(error)
        if render.is_main_process() or not isinstance(problem, UsageError):
            render.error(problem)
        sys.exit(problem.exit_code)


def _stop(number: int, frame: object) -> None:
    """Interrupt the command. SIGTERM, which schedulers and torchrun send, does the same as Ctrl-C.

    A second Ctrl-C exits at once. A second SIGTERM is ignored, because a sweep and a scheduler may both send one to a worker.
    """
    global _stopped_by, _discarded
    if _stopped_by and not _discarded and number == signal.SIGINT:
        os._exit(128 + number)
    if not _stopped_by or _discarded:
        _stopped_by, _discarded = _stopped_by or number, False
        raise KeyboardInterrupt


def _repeat(discarded: Any) -> None:
    """Repeat a signal whose KeyboardInterrupt was raised in a callback, such as of a weak reference: Python discards it."""
    global _discarded
    if discarded.exc_type is not KeyboardInterrupt or not _stopped_by:
        sys.__unraisablehook__(discarded)
        return
    # os.kill ends a Windows process
    send = partial(os.kill, os.getpid()) if os.name == "posix" else signal.raise_signal
    again = threading.Timer(0.05, send, (_stopped_by,))
    again.daemon, _discarded = True, True
    again.start()


def _to_inat_ft_error(error: Exception) -> InatFtError:
    """Describe a refusal of the operating system. Any other exception is a bug, and its traceback is written to a file."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return InatFtError("out of memory", "try a smaller image size, batch size or backbone")  # imports would fail
    from inat_ft.crash import is_refusal, write_crash
    from inat_ft.paths import cache_folder

    if isinstance(error, OSError) and is_refusal(error) and error.filename:
        hint = "choose another path, or change its permissions"
        problem = InatFtError(f"cannot use {error.filename}: {error.strerror}", hint)
    elif isinstance(error, OSError) and is_refusal(error):
        _drop_output()
        hint = "free some space, or redirect the output elsewhere"
        problem = InatFtError(f"cannot write the output: {error.strerror}", hint)
    else:
        file = write_crash(error, cache_folder())
        where = f" and attach {file}" if file else "; run the same command with --debug for a traceback"
        problem = InatFtError(f"{type(error).__name__}: {error}", f"this is a bug in inat-ft; please report it{where}")
    for note in getattr(error, "__notes__", ()):
        problem.add_note(note)
    return problem


def _require_utf8() -> None:
    """Refuse a locale in which file names are not UTF-8, since some names could not be read."""
    encoding = sys.getfilesystemencoding()
    if codecs.lookup(encoding).name != "utf-8":
        problem = f"file names are read as {encoding} under this locale, not as UTF-8"
        raise UsageError(problem, "set PYTHONUTF8=1, or a UTF-8 locale: export LC_ALL=C.UTF-8")


def _open_streams() -> None:
    """Redirect closed standard streams to the null device, so that the next opened file does not take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
    if hasattr(sys.stdout, "reconfigure"):  # escape characters that the encoding lacks, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
