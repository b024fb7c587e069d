"""A process that lacks what Windows lacks. Python imports this file at its start if its folder is on PYTHONPATH.

Blocked: modules and functions of POSIX, forking, file names that Windows refuses, two names that differ only in case, and
moving or removing a file that this process has open. Text files that inat-ft opens without an encoding are an error.
"""

import builtins
import multiprocessing
import os
import signal
import sys
import warnings

MODULES = frozenset(
    {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
)
FUNCTIONS = (
    *(
        "chown",
        "chroot",
        "fchmod",
        "fchown",
        "fork",
        "forkpty",
        "getegid",
        "geteuid",
        "getgid",
        "getgroups",
        "getloadavg",
    ),
    *(
        "getpgid",
        "getuid",
        "killpg",
        "lchown",
        "mkfifo",
        "mknod",
        "nice",
        "posix_fadvise",
        "posix_fallocate",
        "posix_spawn",
    ),
    *(
        "pread",
        "preadv",
        "pwrite",
        "pwritev",
        "sched_getaffinity",
        "sched_setaffinity",
        "sendfile",
        "setpgid",
        "setsid",
    ),
    *("setuid", "statvfs", "sync", "sysconf", "uname", "wait", "waitstatus_to_exitcode"),
)
SIGNALS = (
    "SIGKILL",
    "SIGHUP",
    "SIGUSR1",
    "SIGUSR2",
    "SIGALRM",
    "SIGCHLD",
    "SIGQUIT",
    "SIGSTOP",
    "SIGCONT",
    "SIGPIPE",
    "SIGTSTP",
)
SIGNAL_FUNCTIONS = ("alarm", "setitimer", "sigwait", "pthread_kill", "pthread_sigmask", "pause", "siginterrupt")
USED_BY_LIBRARIES = (
    "waitstatus_to_exitcode",
    "posix_spawn",
    "pthread_sigmask",
    "SIGKILL",
    "uname",
    "sysconf",
    "statvfs",
)
"""Python and PyTorch use these on Linux; only inat-ft must not."""
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
_HERE = os.path.realpath(os.environ.get("TEST_FOLDER", "/nonexistent"))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _own(globals_: object) -> bool:
    return isinstance(globals_, dict) and str(globals_.get("__name__", "")).startswith("inat_ft")


_import = builtins.__import__


def _checked_import(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and name.partition(".")[0] in MODULES and _own(globals):
        raise ModuleNotFoundError(f"No module named {name!r} on this platform", name=name)
    return _import(name, globals, locals, fromlist, level)


def invalid_part(path: str) -> str:
    """Return the part of a path that Windows does not accept as a name, or an empty string."""
    for part in path.split("/"):
        stem = part.partition(".")[0].rstrip().lower()
        if part in ("", ".", ".."):
            continue
        if stem in RESERVED or part[-1] in ". " or any(c in '<>:"\\|?*' or ord(c) < 32 for c in part):
            return part
    return ""


def _whole(path: object, folder: int = -1) -> str:
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if text and folder >= 0 and not os.path.isabs(text):
        text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    return os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text)) if text else ""


def _opened() -> set[str]:
    """Return the files that this process has open or mapped."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return found | {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}


def _refuse_name(path: str) -> None:
    if not path.startswith(_HERE + "/"):
        return
    if part := invalid_part(path[len(_HERE) :]):
        raise OSError(22, f"Windows does not accept the name {part!r}", path)
    folder, name = os.path.split(path)
    others = os.listdir(folder) if os.path.isdir(folder) else []
    if name not in others and name.casefold() in {other.casefold() for other in others}:
        raise FileExistsError(17, "another file has this name in other case", path)


def _refuse_open(path: str) -> None:
    if path.startswith(_HERE + "/") and any(each == path or each.startswith(path + "/") for each in _opened()):
        raise PermissionError(13, "the file is open in this process", path)


class Audit:
    """Raises what Windows would raise, before the operating system is called."""

    def __init__(self) -> None:
        self.is_busy = False  # the checks open files themselves

    def __call__(self, event: str, args: tuple) -> None:
        if self.is_busy or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.fork", "os.forkpty"):
            return
        self.is_busy = True
        try:
            self.check(event, args)
        finally:
            self.is_busy = False

    def check(self, event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITES and not isinstance(args[0], int):
            _refuse_name(_whole(args[0]))
        elif event == "os.mkdir":
            _refuse_name(_whole(args[0], args[2]))
        elif event == "os.rename":
            source, target = _whole(args[0], args[2]), _whole(args[1], args[3])
            _refuse_name(target)
            _refuse_open(source)
            _refuse_open(target)
        elif event == "os.remove":
            _refuse_open(_whole(args[0], args[1]))
        elif event.startswith("os.fork"):
            raise NotImplementedError("this platform cannot fork")


def block() -> None:
    """Remove what Windows lacks from this process."""
    libraries_need = set(USED_BY_LIBRARIES)
    for module, names in ((os, FUNCTIONS), (signal, (*SIGNALS, *SIGNAL_FUNCTIONS))):
        for name in names:
            if name not in libraries_need and hasattr(module, name):
                delattr(module, name)
    builtins.__import__ = _checked_import
    multiprocessing.set_start_method("spawn", force=True)
    if sys.flags.warn_default_encoding:
        warnings.filterwarnings("error", category=EncodingWarning, module="inat_ft")
    sys.addaudithook(Audit())


if __name__ == "sitecustomize":
    block()
