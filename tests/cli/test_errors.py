"""What the command line makes of errors: of the system, of memory, of signals and of processes that are not the first."""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from inat_ft.cli import main
from inat_ft.errors import InatFtError, UsageError


@pytest.fixture
def failing(cli, monkeypatch: pytest.MonkeyPatch):
    """Run a command that raises an error."""

    def run(error: BaseException, *words: str):
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr("inat_ft_doctor.stores.list_stores", fail)
        return cli("cache", *words)

    return run


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
    ],
)
def test_missing_memory_is_no_bug(failing, error: Exception) -> None:
    ran = failing(error)
    assert (ran.code, ran.err.splitlines()) == (
        1,
        ["inat-ft: out of memory", "  try a smaller image size, batch size or backbone"],
    )
    assert not Path("cache", "crash.txt").exists()


def test_a_refused_file_is_named_and_is_no_bug(failing) -> None:
    ran = failing(PermissionError(errno.EACCES, "Permission denied", "runs/r/record.json"))
    assert ran.code == 1 and "inat-ft: cannot use runs/r/record.json: Permission denied" in ran.err
    assert "bug" not in ran.err and not Path("cache", "crash.txt").exists()


def test_notes_of_an_unexpected_error_are_shown(failing) -> None:
    error = RuntimeError("lost")
    error.add_note("resume: inat-ft train --resume runs/r")
    ran = failing(error)
    assert ran.code == 1 and "this is a bug in inat-ft" in ran.err
    assert ran.err.splitlines()[-1] == "  resume: inat-ft train --resume runs/r"


def test_tracebacks_can_be_asked_for_in_the_environment(failing, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in failing(InatFtError("no"), "-q").err
    monkeypatch.setenv("INAT_FT_DEBUG", "1")
    ran = failing(InatFtError("no"))
    assert "Traceback" in ran.err and "inat-ft: no" in ran.err


def test_a_signal_counts_even_if_a_library_replaces_its_exception(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            raise RuntimeError("the data loader was killed") from None

    monkeypatch.setattr("inat_ft_doctor.stores.list_stores", replaced)
    ran = cli("cache")
    assert ran.code == 143 and "bug" not in ran.err and not Path("cache", "crash.txt").exists()


def test_a_process_that_is_not_the_first_is_silent_about_usage_errors(failing, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "5")
    ran = failing(UsageError("no such folder"))
    assert (ran.code, ran.err) == (2, "")  # the first process says it
    ran = failing(InatFtError("the GPU is gone"))
    assert ran.code == 1 and "inat-ft (process 5): the GPU is gone" in ran.err


def test_without_a_home_folder_a_warning_names_the_one_that_is_used(cli, monkeypatch, tmp_path: Path) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "")  # restored after the test
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "home", none)
    ran = cli("cache")
    folder = tmp_path / f"inat-ft-{os.getuid()}"
    assert ran.code == 0 and f"warning: there is no home folder, so {folder} is used" in ran.err
    assert os.environ["HOME"] == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)  # such as by another user
    cli("cache")
    other = Path(os.environ["HOME"])
    assert other != folder and other.parent == tmp_path and other.stat().st_mode & 0o777 == 0o700


def test_a_locale_with_other_file_names_is_refused_but_help_is_shown(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.sys, "getfilesystemencoding", lambda: "latin-1")
    ran = cli("cache")
    assert ran.code == 2 and "file names are read as latin-1" in ran.err and "PYTHONUTF8=1" in ran.err
    assert cli("cache", "--help").code == 0


def test_closed_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    main._open_streams()
    opened = [sys.stdin, sys.stdout, sys.stderr]
    try:
        print("lost")
        assert sys.stdin.read() == "" and [stream.name for stream in opened] == [os.devnull] * 3
    finally:
        for stream in opened:
            stream.close()
